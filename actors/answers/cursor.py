"""A place among tokens, which a grammar moves forward."""

from collections.abc import Sequence

from actors.answers.tokens import Token, Unread


class Cursor:
    """Tokens and the next one to read. Signs and commands are asked for by their text."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.at = 0

    def here(self) -> Token | None:
        """The next token of any kind; None at the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def peek(self) -> str | None:
        """The text of the next token if it is a sign or a command."""
        token = self.here()
        return token.text if token is not None and token.kind in ("sign", "command", "environment") else None

    def next(self) -> Token:
        """The next token, of any kind.

        Raises:
            Unread: There is none.
        """
        if self.at >= len(self.tokens):
            raise Unread("the text ends within an expression")
        self.at += 1
        return self.tokens[self.at - 1]

    def take(self, *texts: str) -> str | None:
        """Move over the next token if it is one of these signs or commands."""
        found = self.peek()
        if found is None or found not in texts:
            return None
        self.at += 1
        return found

    def expect(self, text: str) -> None:
        """Move over this sign or command.

        Raises:
            Unread: Another token is next.
        """
        if self.take(text) is None:
            raise Unread(f"{self.rest()!r} where {text!r} is expected")

    def rest(self) -> str:
        """The next few tokens, for messages."""
        return " ".join(token.text for token in self.tokens[self.at : self.at + 8]) or "the end"
