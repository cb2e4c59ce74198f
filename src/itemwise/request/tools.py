"""What a checkpoint brings to turn texts into requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from itemwise.request.check import RequestLimits
from itemwise.request.decide.profile import DecisionProfile
from itemwise.request.profiles import Profile
from itemwise.request.template import PromptTemplate
from itemwise.request.tokenizer import Tokenizer


@dataclass(frozen=True)
class PromptTools:
    """What a checkpoint brings to turn raw fields and texts into a request.

    Attributes:
        limits: that a request must keep.
        tokenizer: for text; None if the checkpoint has none.
        template: its prompt template; None if it has none.
        profile: how it ranks; or the reason why it cannot.
        decisions: how it answers typed questions; or the reason why it cannot.
    """

    limits: RequestLimits
    tokenizer: Tokenizer | None = None
    template: PromptTemplate | None = None
    profile: Profile | str = "it has no profile"
    decisions: DecisionProfile | str = "it has no decision profile"

    def with_check(self, between_pieces: Callable[[], None] | None) -> PromptTools:
        """The same, with a tokenizer that calls `between_pieces` often; it raises to give up."""
        if self.tokenizer is None or between_pieces is None:
            return self
        decisions = self.decisions
        if not isinstance(decisions, str):
            own = decisions.tokenizer.with_check(between_pieces)
            decisions = replace(decisions, tokenizer=own)
        tokenizer = self.tokenizer.with_check(between_pieces)
        return replace(self, tokenizer=tokenizer, decisions=decisions)
