"""
What is asked: prompts of random words, their lengths and those of the answers.

The same seed gives the same lengths, words and arrivals.  Only one word of a prompt differs from
run to run and from row to row, the first that is not shared: no prefix cache knows what follows.
"""

from __future__ import annotations

import json
from functools import cached_property
from random import Random

import attrs

# Most tokenizers have each, with the space before it, as one token.
WORDS = (  # noqa: SIM905 - a list of them would be 140 lines
    "about after again air all animal answer back before big book boy call change city close come"
    " country cut day door earth end eye face family father few find food form four friend girl"
    " give good great group hand hard head help high hold home house idea keep kind land large last"
    " late learn leave left letter life light line list little live long look man many mile money"
    " morning mother mountain move name near need never new next night number old open order own"
    " page paper part people place plan plant play point power question read rest river road room"
    " run school sea second seem side small song sound stand start state stop story study summer"
    " sun table talk test thing think time town tree turn under voice walk wall war watch water way"
    " week white wind wood word work world write year young"
).split()
LEAST_TOKENS, MOST_TOKENS = 4, 1024  # of a mix
# Median and sigma of log-normal lengths.  Cut at these bounds, their means are about 160 and 340
# tokens, which is what the conversations collected by ShareGPT have.
INPUT, OUTPUT = (70.0, 1.4), (235.0, 1.0)
ANSWERED = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@attrs.frozen(kw_only=True)
class Asked:
    """A request."""

    body: bytes
    output_tokens: int


@attrs.frozen(kw_only=True)
class Workload:
    """
    What every row asks for.

    Attributes:
        api: ``chat`` or ``completions``.
        mix: ``chat``, or None for lengths that are fixed.
        input_tokens: Of a prompt, its shared part not counted; None with a mix.
        output_tokens: Of an answer; None with a mix.
        shared_prefix: Tokens all prompts begin with.
        ignore_eos: Ask for answers that do not end by themselves.
    """

    model: str
    api: str = "chat"
    mix: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    shared_prefix: int = 0
    ignore_eos: bool = False
    temperature: float = 0.0
    seed: int = 0

    @property
    def path(self) -> str:
        return ANSWERED[self.api]

    @cached_property
    def shared(self) -> str:
        """What all prompts begin with."""
        return " ".join(self._random("shared").choices(WORDS, k=self.shared_prefix))

    def arrivals(self) -> Random:
        """Return the chance that decides when requests arrive."""
        return self._random("arrivals")

    def request(self, number: int, mark: str) -> Asked:
        """
        Return a request.

        Args:
            number: The same number, the same lengths and words.
            mark: A word that is in no other run.
        """
        chance = self._random(number)
        length, output_tokens = self._lengths(chance)
        own = [mark, *chance.choices(WORDS, k=length)][:length]
        prompt = " ".join([self.shared, *own] if self.shared else own)
        body: dict[str, object] = {
            "model": self.model,
            "max_tokens": output_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.api == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.ignore_eos:
            body["ignore_eos"] = True
        return Asked(body=json.dumps(body).encode(), output_tokens=output_tokens)

    def _lengths(self, chance: Random) -> tuple[int, int]:
        """Return the tokens of prompt and answer."""
        if self.input_tokens is not None and self.output_tokens is not None:
            return self.input_tokens, self.output_tokens
        drawn = [median * chance.lognormvariate(0, sigma) for median, sigma in (INPUT, OUTPUT)]
        lengths = [min(max(round(each), LEAST_TOKENS), MOST_TOKENS) for each in drawn]
        return lengths[0], lengths[1]

    def _random(self, what: object) -> Random:
        return Random(f"{self.seed}/{what}")  # noqa: S311 - words, not secrets
