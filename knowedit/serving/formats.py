"""What edits are exported as; this file imports nothing, so that options are told at once."""

FORMATS = {
    "peft": "a PEFT adapter",
    "checkpoint": "a checkpoint",
    "gguf": "a GGUF file",
    "gguf-lora": "a GGUF adapter",
}
