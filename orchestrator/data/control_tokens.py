"""The control tokens of a tokenizer, and marks that keep a text from spelling them.

In: a tokenizer with its chat template, z_c and EOS. Out: `ControlTokens`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

NEUTRAL_TEXT = "1+1="
"""A text that spells no control token, and that no template treats in a special way."""

# Noncharacters of Unicode, which no text has.
_EDGE = "\ufdd0"
"""Stands at both ends of a marked text."""
_HIDDEN = "\ufdd1"
"""Stands with a private-use character for the first character of each control token that a text spells."""
_STAND_IN = "\ufdd2"
"""Stands around the id of a control token that a template writes."""
_PRIVATE_USE = 0xF0000


class ControlTokens:
    """The tokens that structure a conversation: no text of a message may become one of them.

    These are the special tokens, z_c, the EOS tokens, and the other added tokens that the chat template
    writes. In an assistant's text the last ones count only if they mark turns, because a model itself writes
    tokens such as `<think>`.

    Args:
        tokenizer: The model's tokenizer, with a chat template.
        z_token: z_c; None where self-rewarding is off.
        eos_tokens: The tokens that end a response.
        template_kwargs: Values that the chat template takes.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        z_token: int | None,
        eos_tokens: Iterable[int],
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._template_kwargs = template_kwargs or {}
        self._tokenizer = tokenizer
        self._z_token = z_token
        self._named = {z_token, *eos_tokens}

    @cached_property
    def by_text(self) -> dict[str, "AddedToken"]:
        """The control tokens that a text can spell."""
        from tokenizers import AddedToken

        tokenizer, template = self._tokenizer, str(self._tokenizer.chat_template)
        vocabulary = tokenizer.get_vocab()
        found = {
            token: AddedToken(token, special=True, normalized=False)
            for token in tokenizer.all_special_tokens
            if token in vocabulary
        }
        for token_id, token in tokenizer.added_tokens_decoder.items():
            text = str(token)
            # Space, words and the like may be added tokens too, and a template writes them as text.
            in_template = text in template and not text[:1].isalnum() and any(map(str.isalpha, text))
            if text.strip() and (token.special or token_id in self._named or in_template):
                found[text] = token
        # Byte fallback writes unknown characters in tokens of this form.
        return {text: token for text, token in found.items() if not re.fullmatch("<0x[0-9A-F]{2}>", text)}

    @cached_property
    def ids(self) -> dict[str, int]:
        """Their ids, by their text."""
        return {text: int(self._tokenizer.convert_tokens_to_ids(text)) for text in self.by_text}

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds them in a text, the longest first, as tokenizers do."""
        return _any_of(self.by_text)

    def among(self, token_ids: Iterable[int]) -> list[int]:
        """The control tokens among these, in order, without the unknown token: any text may become it."""
        forbidden = self._forbidden
        return [token_id for token_id in token_ids if token_id in forbidden]

    def spells_unknown(self, texts: Sequence[str]) -> bool:
        """Whether a text spells the unknown token."""
        unknown = self._tokenizer.unk_token
        return unknown is not None and any(unknown in text for text in texts)

    def mark(self, text: str, of_assistant: bool) -> str:
        """The text, with marks so that no control token is found in it, nor across its ends.

        A template may strip a text, so the marks of its ends are within its outer space.
        """
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        pattern = self._pattern_of_assistants if of_assistant else self.pattern
        hidden = re.sub(
            f"(?={pattern.pattern})(?s:.)",  # a lookahead also finds tokens that overlap
            lambda match: _HIDDEN + chr(_PRIVATE_USE + self._heads.index(match[0])),
            core,
        )
        return f"{text[:start]}{_EDGE}{hidden}{_EDGE}{text[start + len(core) :]}"

    def unmark(self, marked: str) -> str:
        """The text without its marks."""
        shown = re.sub(f"{_HIDDEN}(.)", lambda match: self._heads[ord(match[1]) - _PRIVATE_USE], marked)
        return shown.replace(_EDGE, "")

    def outside_of_marks(self, marked: str) -> list[int]:
        """The control tokens that a template wrote around marked texts."""
        return self.among(self.ids[match[0]] for match in self.pattern.finditer(marked))

    def first_behind(self, marked: str) -> int | None:
        """The control token that a template wrote right behind the last marked text; None without one."""
        rest = marked.rpartition(_EDGE)[2].lstrip()
        found = self.pattern.match(rest)
        return None if found is None else self.ids[found[0]]

    def stand_in(self, text: str) -> str:
        """A spelling for the control token with this text, which no message's text has."""
        return f"{_STAND_IN}{self.ids[text]}{_STAND_IN}"

    @cached_property
    def _forbidden(self) -> set[int]:
        ids = {*self.ids.values()} | ({self._z_token} if self._z_token is not None else set())
        return ids - {self._tokenizer.unk_token_id}

    @cached_property
    def _heads(self) -> list[str]:
        return sorted({text[0] for text in self.by_text})

    @cached_property
    def _pattern_of_assistants(self) -> re.Pattern[str]:
        question = [{"role": "user", "content": NEUTRAL_TEXT}]
        turn = self._tokenizer.apply_chat_template(
            question, add_generation_prompt=False, tokenize=False, **self._template_kwargs
        )
        return _any_of(
            text
            for text, token in self.by_text.items()
            if token.special or text in turn or self.ids[text] in self._named
        )


def has_marks(text: str) -> bool:
    """Whether a text holds what only marks may hold."""
    return any(mark in text for mark in (_EDGE, _HIDDEN, _STAND_IN))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"(?:{'|'.join(map(re.escape, longest_first))})" if longest_first else r"(?:(?!))")
