"""How many questions are in memory at a time, so that a large model's take no more of it than a small one's."""

from stages.models.vlm import ModelConfig

LARGEST = 32
_MEMORY = 400 << 20  # bytes for the largest values of the tower, and as many for logits
_TOWER = 16  # the largest of a tower's activations, in sizes of its image; 200 MB of FastViTHD at 1,024 pixels


def batch_size(config: ModelConfig, answer_tokens: int) -> int:
    """Of a model with a tower: from 1 to LARGEST. answer_tokens: of the longest answer, whose logits are kept."""
    assert config.vision is not None and config.text is not None
    image = 4 * 3 * config.vision.image_size**2 * _TOWER
    logits = 4 * config.text.vocab_size * (answer_tokens + 1)
    return max(1, min(LARGEST, _MEMORY // image, _MEMORY // logits))
