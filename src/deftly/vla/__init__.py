"""Vision-language-action models: what they see and do, their fine-tuning, and the policy that comes of it."""
