r"""The verifier `math`: the paper's reward, by the comparison of this package."""

from actors.answers.compare import accepts
from actors.answers.forms import Void
from actors.boxes import boxed_answers, last_answer
from orchestrator.messages.verdicts import Status, Verdict


def verify_answer(response: str, reference: str) -> Verdict:
    r"""Check the only \boxed{} of a response against the reference; `detail` says how both were read.

    No complete box, or an empty one, is `no_answer`. More than one box is `format`; one without an end
    counts. A reference that is not wholly read is `error`, unless the answer is the same text. An answer that
    is not wholly read is wrong, unless it is the same text.
    """
    boxes = boxed_answers(response)
    answer = last_answer(boxes)
    if answer is None:
        return Verdict(Status.NO_ANSWER, None, r"no complete \boxed{}")
    if len(boxes) > 1:
        return Verdict(Status.FORMAT, answer, rf"{len(boxes)} times \boxed{{}} where one is asked for")
    if not answer:
        return Verdict(Status.NO_ANSWER, answer, r"the \boxed{} is empty")
    found = accepts(reference, answer)
    if isinstance(found.reference, Void) and not found.equal:
        unread = f"the reference {reference!r} is not wholly read: {found.reference.reason}"
        return Verdict(Status.ERROR, answer, f"{unread}; correct the data")
    return Verdict(Status.CORRECT if found.equal else Status.WRONG, answer, str(found))
