"""Renders chat messages as ChatML, the template SmolLM2 was trained on, in pieces.

Each piece says whether it is template (special tokens honoured) or somebody's text (never), so the
caller can make prompt parts of them: the scorer then reads exactly the tokens the model was served.
Pure. Knows nothing of tokens, sources or who wrote a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.core.errors import InvalidError

ROLES = ("system", "user", "assistant")
SYSTEM_DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass(frozen=True, slots=True)
class ChatPiece:
    """A stretch of rendered prompt."""

    text: str
    control: bool  # template text; a message's own text is never control
    message: int | None  # which message the text is, None for template


def render_chat(
    messages: Sequence[tuple[str, str]], *, system_default: str | None = SYSTEM_DEFAULT, open_answer: bool = True
) -> tuple[ChatPiece, ...]:
    """ChatML of ``(role, content)`` messages, ending where the assistant's answer begins.

    Neighbouring template text is one piece; an empty message adds no piece. As in the model's own
    template, a conversation that does not open with a system message gets `system_default` (a
    template piece; None leaves it out). With `open_answer` the opening of the answer is appended.

    Raises:
        InvalidError: no messages, or a role the template does not have.

    >>> [piece.text for piece in render_chat([("user", "Hi")], system_default=None)]
    ['<|im_start|>user\\n', 'Hi', '<|im_end|>\\n<|im_start|>assistant\\n']
    """
    if not messages:
        raise InvalidError(
            "a chat needs at least one message", code="messages_invalid", fix="send one message with role user"
        )
    pieces: list[ChatPiece] = []
    template = ""
    if messages[0][0] != "system" and system_default is not None:
        template = f"<|im_start|>system\n{system_default}<|im_end|>\n"
    for index, (role, content) in enumerate(messages):
        if role not in ROLES:
            raise InvalidError(
                f"message {index} has role {role!r}", code="messages_invalid", fix=f"use one of {', '.join(ROLES)}"
            )
        template += f"<|im_start|>{role}\n"
        if content:
            pieces.append(ChatPiece(template, control=True, message=None))
            pieces.append(ChatPiece(content, control=False, message=index))
            template = ""
        template += "<|im_end|>\n"
    if open_answer:
        template += "<|im_start|>assistant\n"
    return (*pieces, ChatPiece(template, control=True, message=None))
