"""Stand-ins for PaliGemma and its tokenizers: the smallest with which LeRobot's pi0_fast and pi05 go the whole way.

LeRobot has two sizes of Gemma, both of which take gigabytes. `shrink` puts one of a few thousand parameters in their
place. Run as a program, it is `deftly` with these: python tiny_pi.py serve --policy DIR
"""

import json
import sys
from pathlib import Path

VOCABULARY = 1024
COEFFICIENTS = 256
"""Characters of the FAST tokenizer, a token each: coefficients -128 .. 127."""
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "Action", "Task", "State", ":", ",", ";", "|"]
WORDS += ["push", "the", "block", "to", "middle", "centre", *map(str, range(-1, 256))]
PALIGEMMA = "google/paligemma-3b-pt-224"


def shrink(width: int = 16) -> None:
    """Give LeRobot's pi0_fast and pi05 a tiny PaliGemma."""
    from lerobot.policies.pi0_fast import modeling_pi0_fast
    from lerobot.policies.pi05 import modeling_pi05

    for module in (modeling_pi0_fast, modeling_pi05):
        # LeRobot's pi05 takes it that there are eight heads
        made = module.GemmaConfig(width, 2, 2 * width, num_heads=8, num_kv_heads=1, head_dim=8)
        module.get_gemma_config = lambda variant, made=made: made
        whole = module.PaliGemmaForConditionalGenerationWithPiGemma

        def tiny(config, whole=whole):
            config.text_config.vocab_size = VOCABULARY
            sizes = {"hidden_size": width, "intermediate_size": width, "projection_dim": width}
            sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
            sizes |= {"image_size": 32, "patch_size": 16}
            for name, value in sizes.items():
                setattr(config.vision_config, name, value)
            return whole(config)

        module.PaliGemmaForConditionalGenerationWithPiGemma = tiny


def write_words(folder: Path) -> Path:
    """A tokenizer in place of PaliGemma's."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, *(f"<unused{i}>" for i in range(VOCABULARY - len(WORDS)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return folder


def write_fast(folder: Path) -> Path:
    """A FAST tokenizer without merges."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE({chr(i): i for i in range(COEFFICIENTS)}, []))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False
    ).save_pretrained(folder)
    numbers = {"scale": 10, "min_token": -COEFFICIENTS // 2, "vocab_size": COEFFICIENTS}
    (folder / "processor_config.json").write_text(json.dumps(numbers))
    return folder


if __name__ == "__main__":
    from deftly.commands.main import main

    shrink()
    sys.exit(main(sys.argv[1:]))
