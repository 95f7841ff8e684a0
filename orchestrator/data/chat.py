"""Messages to token ids: the chat template's own control tokens are tokens, those that a text spells are not.

In: a tokenizer, and messages or a text. Out: token ids. A text that spells a control token (such as
    `<|im_end|>`, or z_c) is encoded as any other text, so that it can neither close its turn nor forge one. A
    text that spells none has the token ids of `tokenizer.apply_chat_template` and `tokenizer.encode`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.data.control_tokens import NEUTRAL_TEXT, ControlTokens, has_marks
from orchestrator.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, str]
"""A message: its `role` and its `content`."""


class ControlTokenError(DataError):
    """A text would become control tokens, and this tokenizer cannot encode it in another way."""


@dataclass(frozen=True)
class ChatSettings:
    """What a chat template is given besides the conversation."""

    system: str = ""
    """The system message of a conversation that has none; empty for none."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Values that the template takes, such as `enable_thinking`."""
    template: str | None = None
    """The text of a chat template in place of the tokenizer's own."""


class ChatEncoder:
    """Encodes conversations and texts for one model.

    Args:
        tokenizer: The model's tokenizer, with a chat template.
        z_token: z_c; None where self-rewarding is off.
        eos_tokens: The tokens that end a response.
        settings: The system message and the template's values.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        z_token: int | None = None,
        eos_tokens: Iterable[int] = (),
        settings: ChatSettings | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings or ChatSettings()
        self.control = ControlTokens(tokenizer, z_token, eos_tokens, self.settings.template_kwargs)
        self._around: dict[tuple[str, ...], list[int]] = {}

    def chat(self, messages: Sequence[Turn]) -> list[int]:
        """The token ids of a conversation and of the start of the assistant's next turn.

        Raises:
            ControlTokenError: A text would become control tokens.
            Exception: Whatever the template raises for this conversation.
        """
        turns = self.with_system(messages)
        token_ids = self._template_ids(turns)
        texts = [turn["content"] for turn in turns]
        found, unknown = self.control.among(token_ids), self.control.spells_unknown(texts)
        if _is_question(turns) and found == self._around_neutral(turns) and not unknown:
            return token_ids
        marked = self._render_marked(turns)
        if marked is not None:
            plain = found == self.control.outside_of_marks(marked) and not unknown
            return token_ids if plain else self._encode(marked, texts)
        # Where no text spells a control token, other texts in their places leave the same ones.
        if found == self._around_neutral(turns) and not unknown:
            return token_ids
        raise self._refusal(texts)

    def chats(self, conversations: Sequence[Sequence[Turn]]) -> list[list[int] | None]:
        """The token ids of these conversations, made together and on all cores.

        Returns:
            As `chat` gives them, in order; None where only `chat` itself can tell, or refuses a message.
        """
        if not conversations or not self._encodes_together:
            return [None] * len(conversations)
        dialogues = [self.with_system(messages) for messages in conversations]
        try:
            # Tells whether a batch is encoded like one conversation, and leaves the tokenizer ready for it.
            first = self._template_ids(dialogues[0])
            texts = self._apply([[*map(dict, turns)] for turns in dialogues], tokenize=False)
            encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            around = [self._around_neutral(turns) if _is_question(turns) else None for turns in dialogues]
        except Exception:  # `chat` finds the message that fails, and how
            return [None] * len(conversations)
        if encoded[0].ids != first:
            return [None] * len(conversations)
        found = []
        for turns, encoding, expected in zip(dialogues, encoded, around, strict=True):
            plain = self.control.among(encoding.ids) == expected
            plain = plain and not self.control.spells_unknown([turn["content"] for turn in turns])
            found.append(encoding.ids if plain else None)
        return found

    def with_system(self, messages: Sequence[Turn]) -> list[Turn]:
        """The conversation, begun by the system message of the settings unless it has one."""
        system = self.settings.system
        if not system or (messages and messages[0]["role"] in ("system", "developer")):
            return [*messages]
        return [{"role": "system", "content": system}, *messages]

    def response(self, text: str) -> list[int]:
        """The token ids of an assistant's text, without the end of its turn.

        Raises:
            ControlTokenError: The text would become control tokens.
        """
        token_ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        marked = self.control.mark(text, of_assistant=True)
        own = [] if has_marks(text) else self.control.outside_of_marks(marked)
        if own == self.control.among(token_ids) and not self.control.spells_unknown([text]):
            return token_ids
        return self._encode(marked, [text])

    def render(self, messages: Sequence[Turn]) -> str:
        """The text of a conversation and of the start of the assistant's next turn."""
        return str(self._apply([*map(dict, self.with_system(messages))], tokenize=False))

    def render_answered(self, messages: Sequence[Turn]) -> str:
        """The text of a conversation that the assistant ends."""
        turns = [*map(dict, messages)]
        return str(self._apply(turns, add_generation_prompt=False, tokenize=False))

    def answered(self, messages: Sequence[Turn]) -> list[int]:
        """The token ids of a conversation as it is, without the start of another turn."""
        turns = [*map(dict, self.with_system(messages))]
        return list(self._apply(turns, add_generation_prompt=False, tokenize=True, return_dict=False))

    def _apply(self, turns: Sequence[Any], add_generation_prompt: bool = True, **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=add_generation_prompt, **self.settings.template_kwargs, **options
        )

    def _template_ids(self, turns: Sequence[Turn]) -> list[int]:
        return list(self._apply([*map(dict, turns)], tokenize=True, return_dict=False))

    @cached_property
    def _encodes_together(self) -> bool:
        """Whether the tokenizer has transformers' own way from a conversation to the tokenizers library."""
        from transformers import TokenizersBackend

        own = type(self.tokenizer)
        return issubclass(own, TokenizersBackend) and all(
            getattr(own, method) is getattr(TokenizersBackend, method)
            for method in ("apply_chat_template", "__call__", "_encode_plus")
        )

    def _around_neutral(self, turns: Sequence[Turn]) -> list[int]:
        """The control tokens that the template writes around texts of these roles."""
        roles = tuple(turn["role"] for turn in turns)
        if roles not in self._around:
            neutral = [{"role": role, "content": NEUTRAL_TEXT} for role in roles]
            self._around[roles] = self.control.among(self._template_ids(neutral))
        return self._around[roles]

    def _render_marked(self, messages: Sequence[Turn]) -> str | None:
        """The conversation with marked texts; None where one has marks, or the template looks into it."""
        if any(has_marks(turn["content"]) for turn in messages):
            return None
        turns = [
            {**turn, "content": self.control.mark(turn["content"], turn["role"] == "assistant")}
            for turn in messages
        ]
        try:
            marked = self.render(turns)  # has its system message already
        except Exception:  # a template is a program: it may refuse a text with marks
            return None
        return marked if self.control.unmark(marked) == self.render(messages) else None

    def _encode(self, marked: str, texts: Sequence[str]) -> list[int]:
        """Encode marked texts: only the control tokens outside of the marks become tokens.

        Raises:
            ControlTokenError: This tokenizer cannot do that.
        """
        if not any(map(has_marks, texts)):
            encode = self._encode_by_pieces if self._splitting is None else self._encode_whole
            token_ids = encode(marked)
            if self.control.among(token_ids) == self.control.outside_of_marks(marked):
                return token_ids
        raise self._refusal(texts)

    def _refusal(self, texts: Sequence[str]) -> ControlTokenError:
        spelled = sorted({match[0] for text in texts for match in self.control.pattern.finditer(text)})
        return ControlTokenError(
            f"the text becomes {', '.join(map(repr, spelled)) or 'control tokens of the model'}, and the "
            "tokenizer cannot encode it as plain text; remove it"
        )

    def _encode_whole(self, marked: str) -> list[int]:
        """Encode in one piece, with stand-ins for the control tokens outside of the marks."""
        assert self._splitting is not None
        text = self.control.pattern.sub(lambda match: self.control.stand_in(match[0]), marked)
        token_ids = self._splitting.encode(self.control.unmark(text), add_special_tokens=False).ids
        return [self._stood_in.get(token_id, token_id) for token_id in token_ids]

    def _encode_by_pieces(self, marked: str) -> list[int]:
        """Encode what stands between the control tokens outside of the marks, without any added token."""
        token_ids: list[int] = []
        end, strips = 0, False
        for match in [*self.control.pattern.finditer(marked), None]:
            piece = marked[end : match.start()] if match else marked[end:]
            token = self.control.by_text[match[0]] if match else None
            piece = piece.lstrip() if strips else piece
            piece = piece.rstrip() if token is not None and token.lstrip else piece
            if piece := self.control.unmark(piece):
                token_ids += self.tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=True)
            if match and token is not None:
                token_ids.append(self.control.ids[match[0]])
                end, strips = match.end(), token.rstrip
        return token_ids

    @cached_property
    def _splitting(self) -> "Tokenizer | None":
        """A copy of the tokenizer that reads control tokens as text, and has stand-ins for them.

        None for a tokenizer that is not of the tokenizers library.
        """
        from tokenizers import AddedToken, Tokenizer

        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        tree = json.loads(backend.to_str())
        for token in tree["added_tokens"]:
            token["special"] = token["special"] or token["content"] in self.control.by_text
        copy = Tokenizer.from_str(json.dumps(tree))
        copy.no_padding()
        copy.no_truncation()
        copy.encode_special_tokens = True  # reads them like other text
        copy.add_tokens(
            [
                AddedToken(
                    self.control.stand_in(text),
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                )
                for text, token in self.control.by_text.items()
            ]
        )
        return copy

    @cached_property
    def _stood_in(self) -> dict[int, int]:
        """The control token of each stand-in."""
        assert self._splitting is not None
        stand_ins = {
            text: self._splitting.token_to_id(self.control.stand_in(text)) for text in self.control.ids
        }
        return {
            stand_in: self.control.ids[text] for text, stand_in in stand_ins.items() if stand_in is not None
        }


def _is_question(turns: Sequence[Turn]) -> bool:
    """Whether a conversation is one message of the user, perhaps behind one of the system."""
    return [turn["role"] for turn in turns] in (["user"], ["system", "user"])
