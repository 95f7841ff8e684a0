"""Messages as turns that the model's chat template renders whole.

A template is a program, and many leave out a message whose role they do not know, without an error. The model
would then answer something that nobody asked.
"""

import re
from collections.abc import Sequence

from orchestrator.data.chat import ChatEncoder
from orchestrator.serving.errors import ApiError, malformed
from orchestrator.serving.requests import Message

_END_OF_REASONING = re.compile(r"</think(?:ing)?>|</reasoning>|\[/THINK\]")


def rendered_turns(
    chat: ChatEncoder, messages: Sequence[Message], instruction: str, where: str
) -> list[dict[str, str]]:
    """The turns of a conversation, all of whose texts are in the prompt.

    A developer's message becomes the system's unless the template knows that role. Of an assistant's message
    only the text after its reasoning has to be in the prompt, because templates leave old reasoning out on
    purpose.

    Args:
        instruction: Training's instruction; it is appended to the last user message unless that ends with it.
        where: Names the messages in errors, such as `messages`.

    Raises:
        ApiError: 400; the template fails, or leaves a message out.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    question = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
    if question and instruction and not question["content"].rstrip().endswith(instruction):
        question["content"] = f"{question['content']}\n{instruction}"
    as_system = [turn | {"role": turn["role"].replace("developer", "system")} for turn in turns]
    if as_system != turns and "developer" in str(chat.tokenizer.chat_template):
        try:
            return _whole(chat, turns, where)
        except ApiError:
            return _whole(chat, as_system, where)
    return _whole(chat, as_system, where)


def _whole(chat: ChatEncoder, turns: list[dict[str, str]], where: str) -> list[dict[str, str]]:
    """The same turns. Raises ApiError when not all of their texts are in the prompt."""
    try:
        prompt = chat.render(turns)
    except Exception as error:  # A template is a program and may raise anything.
        roles = ", ".join(turn["role"] for turn in turns)
        raise malformed(
            f"{where}: the model's chat template refuses this conversation ({roles}): {error}", where
        ) from error
    marks = [f"message-{number}-of-{len(turns)}" for number in range(len(turns))]
    try:
        marked = chat.render([turn | {"content": mark} for turn, mark in zip(turns, marks, strict=True)])
    except Exception:  # The template looks into the texts; whether they are there is all that can be checked.
        marked = " ".join(marks)
    for number, (turn, mark) in enumerate(zip(turns, marks, strict=True)):
        text, name = turn["content"], f"{where}[{number}]"
        if text and mark not in marked:
            raise malformed(
                f"{name}: the model's chat template leaves out this message of the {turn['role']}; put its "
                "text into the first message or a user's, or leave it out",
                name,
            )
        if turn["role"] == "assistant":
            text = _END_OF_REASONING.split(text)[-1]
        if text.strip() not in prompt:
            raise malformed(f"{name}: the model's chat template changes this text", name)
    return turns
