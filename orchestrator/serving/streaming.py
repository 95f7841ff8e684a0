"""Token ids to text, piece by piece."""

from collections.abc import Sequence
from typing import Any


class StreamedText:
    """Text of tokens that come bit by bit, held back where a character is not complete or a stop string may have begun."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.text = ""
        self.stopped = False
        self._ids: list[int] = []
        self._context, self._read, self._told = 0, 0, 0

    def add(self, token_ids: Sequence[int]) -> str:
        """Text that is new and will stay."""
        self._ids += token_ids
        self._decode(incomplete=False)
        held_back = max(map(len, self.stops), default=1) - 1
        return self._tell(len(self.text) if self.stopped else max(self._told, len(self.text) - held_back))

    def end(self) -> str:
        """What was held back."""
        if not self.stopped:
            self._decode(incomplete=True)
        return self._tell(len(self.text))

    def _decode(self, incomplete: bool) -> None:
        # A token's text depends on those before it (spaces, bytes of one character), hence the context that is decoded again.
        before = self._plain(self._ids[self._context : self._read])
        after = self._plain(self._ids[self._context :])
        if len(after) <= len(before) or (after.endswith("\ufffd") and not incomplete):
            return
        longest = max(map(len, self.stops), default=0)
        search_from = max(0, len(self.text) - longest)
        self.text += after[len(before) :]
        self._context, self._read = self._read, len(self._ids)
        ends = [position for stop in self.stops if (position := self.text.find(stop, search_from)) >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)], True

    def _plain(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _tell(self, upto: int) -> str:
        told, self._told = self.text[self._told : upto], upto
        return told
