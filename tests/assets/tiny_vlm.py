"""The smallest vision-language model that SmolVLA takes, from random weights, with a tokenizer of a few words."""

from pathlib import Path

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<fake_token_around_image>", "<global-img>"]
WORDS += ["<end_of_utterance>", "push", "the", "block", "to", "middle", "centre", "\n"]


def write(folder: Path) -> Path:
    """Settings, tokenizer and image processor, as `from_pretrained` reads them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMProcessor
    from transformers.models.smolvlm import SmolVLMImageProcessor, SmolVLMVideoProcessor

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )
    size = {"longest_edge": 32}
    images = SmolVLMImageProcessor(size=size, max_image_size=size)
    videos = SmolVLMVideoProcessor(size=size, max_image_size=size)
    processor = SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4)
    processor.save_pretrained(folder)
    text = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = SmolVLMConfig(
        text_config=text, vision_config=vision, image_token_id=4, scale_factor=2, pad_token_id=0
    )
    config.save_pretrained(folder)
    return folder
