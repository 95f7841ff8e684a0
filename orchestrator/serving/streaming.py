"""Token ids to text, piece by piece."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class StreamedText:
    """The text of a response whose tokens arrive in pieces; special tokens are left out.

    Text is held back while its last character is incomplete or a stop string may have begun.

    Args:
        tokenizer: `backend_tokenizer` of a transformers tokenizer.
        stops: Strings that end the text; none of them is part of it.

    Attributes:
        text: The text so far, held-back stop strings included.
        stopped: Whether a stop string has ended it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stops = stops
        self.text = ""
        self.stopped = False
        self._token_ids: list[int] = []
        self._stream = DecodeStream(skip_special_tokens=True)
        self._sent = 0

    def add(self, token_ids: Sequence[int]) -> str:
        """New text that no later token changes."""
        if token_ids:
            self._token_ids += token_ids
            self._extend(self._decode(list(token_ids)))
        held_back = max(map(len, self.stops), default=1) - 1
        return self._send(len(self.text) if self.stopped else max(self._sent, len(self.text) - held_back))

    def end(self) -> str:
        """The text that was held back."""
        if not self.stopped:
            # An incomplete character at the end becomes U+FFFD, as when all tokens are decoded at once.
            whole = self.tokenizer.decode(self._token_ids, skip_special_tokens=True)
            if whole.startswith(self.text):
                self._extend(whole[len(self.text) :])
        return self._send(len(self.text))

    def _decode(self, token_ids: list[int]) -> str:
        try:
            return self._stream.step(self.tokenizer, token_ids) or ""
        except Exception as error:
            # A tokenizer with byte fallback decodes bytes that are no UTF-8 differently once others follow.
            # The stream then fails for good, and a new one must replace it.
            if "Invalid prefix" not in str(error):
                raise
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self.tokenizer, token_ids) or ""

    def _extend(self, new: str) -> None:
        search_from = max(0, len(self.text) - max(map(len, self.stops), default=0))
        self.text += new
        ends = [position for stop in self.stops if (position := self.text.find(stop, search_from)) >= 0]
        if ends:
            self.text = self.text[: min(ends)]
            self.stopped = True

    def _send(self, upto: int) -> str:
        new = self.text[self._sent : upto]
        self._sent = upto
        return new
