"""c_ref, the constant in place of log pi_ref(z_c | x, y): measure it, compare it, check it.

Source: LaSeR (arXiv 2510.14943), where c_ref is the mean over solutions of the initial model.
"""

import math

import numpy as np
import torch
from rich.markup import escape

from orchestrator.algorithm.c_ref import check_c_ref
from orchestrator.algorithm.self_reward import Calibration, calibrate_c_ref
from orchestrator.errors import RunError
from orchestrator.messages.requests import GroupRequest
from orchestrator.pools.collect import Group
from orchestrator.training.session import Session
from orchestrator.training.unfinished import explain_unfinished

CALIBRATION_SEED = 2**41
C_REF_TOLERANCE = 0.25
"""Error of the score at which a given c_ref is worth a warning."""


def measure_c_ref(session: Session) -> float | None:
    """The run's c_ref; None when self-rewarding is off.

    It is measured even for `exact` and for a given number: the method's assumption is checked on the
    measurement, a given number is compared with it, and a service has no reference model.

    Raises:
        RunError: No solution of the initial model finished.
    """
    loss, token = session.config.loss, session.config.self_reward.token
    if token is None:
        return None
    found = _calibrate(session)
    measured = (
        f"log pi_ref({escape(token)}) = {found.c_ref:.3f} over {found.n} solutions of the initial model"
    )
    if not isinstance(loss.c_ref, float):
        session.say(f"c_ref: {measured}, spread {found.std:.3f}")
        return found.c_ref
    if abs(loss.c_ref - found.c_ref) > C_REF_TOLERANCE / loss.beta_v:
        session.say(
            f"[yellow]warning[/yellow] loss.c_ref={loss.c_ref:g}, but {measured}: "
            "scores will be off; set loss.c_ref=calibrate"
        )
    return loss.c_ref


def check_assumption(session: Session) -> None:
    """Check `pi_ref(z_c) * exp(1 / beta_v) << 1`. A trunk has no beta_v, so its trials check it.

    Raises:
        RunError: The assumption does not hold.
    """
    if session.c_ref is None or session.context.is_trunk:
        return
    check = check_c_ref(session.c_ref, session.config.loss.beta_v)
    if check.level == "refuse":
        raise RunError("loss.c_ref: " + " ".join(check.messages))
    for message in check.messages:
        session.say(f"[yellow]warning[/yellow] loss.c_ref: {message}")


def _calibrate(session: Session) -> Calibration:
    """Mean log pi_ref(z_c) over the initial model's own solutions."""
    config = session.config
    samples = config.rollout.samples_per_prompt
    count = math.ceil(config.self_reward.calibration_samples / samples)
    groups = [
        Group(prompt.problem, GroupRequest(prompt.token_ids, samples, CALIBRATION_SEED + position * samples))
        for position, prompt in enumerate(session.problems.first(count))
    ]
    batch = session.collect(groups, {"step": 0})
    if not batch.finished.any():
        raise RunError(f"c_ref cannot be measured: {explain_unfinished(session, batch)}")
    if (broken := batch.finished & ~np.isfinite(batch.z_logprobs)).any():
        raise RunError(
            f"loss.c_ref: {int(broken.sum())} of the initial model's log-probs are not finite: look at the "
            f"weights of model.path={config.model.path}, and at rollout.dtype={config.rollout.dtype}"
        )
    try:
        return calibrate_c_ref(torch.from_numpy(batch.z_logprobs))
    except ValueError as error:
        raise RunError(f"loss.c_ref: {error}") from error
