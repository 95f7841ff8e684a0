"""Requests to token ids, by the model's own chat template and tokenizer.

In: parsed requests. Out: token ids, or an `ApiError` that names the field at fault. Nothing is cut to fit.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from orchestrator.data.chat import ChatEncoder, ControlTokenError
from orchestrator.data.eos import response_end
from orchestrator.data.tokens import settings_of_card
from orchestrator.messages.requests import EngineSettings
from orchestrator.serving.errors import ApiError, malformed
from orchestrator.serving.requests import ChatRequest, Item, Message, MessagesItem, TokensItem
from orchestrator.serving.turns import rendered_turns
from orchestrator.storage.card import SelfRewardCard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RequestTokenizer:
    """Turns requests into token ids, and refuses those that the model cannot take.

    Args:
        name: The model's name in error messages.
        tokenizer: The model's tokenizer.
        card: None for a model without a trained score.
        settings: The engine's EOS tokens, and the longest prompt and response in tokens.
        vocabulary: Number of token ids that the model has.
    """

    def __init__(
        self,
        name: str,
        tokenizer: "PreTrainedTokenizerBase",
        card: SelfRewardCard | None,
        settings: EngineSettings,
        vocabulary: int,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.card = card
        self.settings = settings
        self.vocabulary = vocabulary
        self.chat = ChatEncoder(tokenizer, settings.z_token, settings.eos_tokens, settings_of_card(card))

    def prompt(self, request: ChatRequest) -> tuple[list[int], int]:
        """Token ids of the prompt, and the most tokens that a response may have.

        Raises:
            ApiError: 400 for a vote without a trained score, too many tokens asked for, or messages that the
                chat template refuses; 422 for a prompt that is too long.
        """
        if request.laser and request.laser.vote == "weighted" and self.card is None:
            raise malformed(
                f'{self.name} has no trained score to weigh votes with; ask for "vote": "majority"',
                "laser.vote",
            )
        longest = self.settings.max_response_tokens
        limit = request.most_tokens or longest
        if limit > longest:
            field = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
            raise malformed(f"{field} is {limit}; {self.name} writes at most {longest} tokens", field)
        prompt_ids = self._render(request.messages, "messages")
        room = self.settings.max_prompt_tokens
        if len(prompt_ids) > room:
            message = f"the prompt has {len(prompt_ids)} tokens; {self.name} takes at most {room}"
            raise ApiError(422, message, "messages", "context_length_exceeded")
        return prompt_ids, limit

    def item(self, item: Item, where: str) -> tuple[list[int], list[int]]:
        """Token ids of the prompt and the response of an item to score.

        Args:
            item: Its text is tokenised once and ends with EOS; its token ids are taken as they are.
            where: Names the item in error messages, such as `items[0]`.

        Raises:
            ApiError: 400 for a model without a trained score, an unknown token id or a text that cannot be
                encoded without control tokens; 422 for an item that is too long.
        """
        if self.card is None:
            raise malformed(f"{self.name} has no trained score (no self_reward.json)", "model")
        if isinstance(item, TokensItem):
            prompt, response = list(item.prompt_token_ids), list(item.response_token_ids)
            self._refuse_unknown_tokens(prompt + response, where)
        elif isinstance(item, MessagesItem):
            prompt = self._render(item.messages[:-1], f"{where}.messages")
            response = self._response(item.messages[-1].content, where)
        else:
            prompt = self._render([Message(role="user", content=item.problem)], where)
            response = self._response(item.solution, where)
        room = self.settings.max_prompt_tokens + self.settings.max_response_tokens
        if len(prompt) + len(response) > room:
            message = (
                f"{where}: problem and solution have {len(prompt)} + {len(response)} tokens; "
                f"{self.name} takes at most {room}"
            )
            raise ApiError(422, message, where, "context_length_exceeded")
        return prompt, response

    def _render(self, messages: Sequence[Message], where: str) -> list[int]:
        """The prompt of a conversation."""
        turns = rendered_turns(self.chat, messages, self.card.instruction if self.card else "", where)
        try:
            return self.chat.chat(turns)
        except ControlTokenError as error:
            raise malformed(f"{where}: {error}", where) from error

    def _response(self, solution: str, where: str) -> list[int]:
        try:
            return [*self.chat.response(solution), self._response_end]
        except ControlTokenError as error:
            raise malformed(f"{where}: {error}", where) from error

    @cached_property
    def _response_end(self) -> int:
        return response_end(self.chat, self.settings.eos_tokens)

    def _refuse_unknown_tokens(self, token_ids: Sequence[int], where: str) -> None:
        highest = max(token_ids)
        if highest >= self.vocabulary:
            message = f"{where}: token id {highest} is not of this model, which has {self.vocabulary}"
            raise malformed(message, where)
