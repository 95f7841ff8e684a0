r"""The verifier `math`: the paper's reward, by the comparison of this package."""

from actors.answers.compare import accepts
from actors.answers.forms import Void
from actors.boxes import answer_to_check
from orchestrator.messages.verdicts import Status, Verdict


def verify_answer(response: str, reference: str) -> Verdict:
    r"""Check the only \boxed{} of a response against the reference; `detail` says how both were read.

    `answer_to_check` judges the boxes. A reference that is not wholly read is `error`, unless the answer is
    the same text. An answer that is not wholly read is wrong, unless it is the same text.
    """
    answer = answer_to_check(response)
    if isinstance(answer, Verdict):
        return answer
    found = accepts(reference, answer)
    if isinstance(found.reference, Void) and not found.equal:
        unread = f"the reference {reference!r} is not wholly read: {found.reference.reason}"
        return Verdict(Status.ERROR, answer, f"{unread}; correct the data")
    return Verdict(Status.CORRECT if found.equal else Status.WRONG, answer, str(found))
