"""What purifications that ask a model for a picture by words have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from udpbench.core.text import check_stands
from udpbench.interfaces import Attack


@dataclass(kw_only=True)
class Prompted(Attack):
    """A purification with a prompt.

    Args:
        guidance: of the prompt (Ho & Salimans 2022); 1: none, and no negative prompt.
        prompt: what is asked for; ``{caption}`` stands for the picture's own.
        negative_prompt: what is steered away from.
    """

    guidance: float
    prompt: str
    negative_prompt: str

    def __post_init__(self) -> None:
        check_stands("attack: prompt", self.prompt, "caption")
        check_stands("attack: negative_prompt", self.negative_prompt)

    def model_prompts(self) -> list[str]:
        return [self.negative_prompt, *([] if "{caption}" in self.prompt else [self.prompt])]

    def asked(self, captions: Sequence[str]) -> list[str]:
        """The prompt for each of the pictures with these captions."""
        return [self.prompt.replace("{caption}", text) for text in captions]
