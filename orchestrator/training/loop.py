"""The LaSeR training loop: algorithm 1 of the paper (arXiv 2510.14943), over three pools of actors.

One step (x is a problem, y a solution, r_v the verifier's reward, z_c a token that the model never uses):

    1. engines sample y ~ pi(. | x), verifiers check r_v; one more decode step reads log pi(z_c | x, y, EOS)
    2. log pi_ref(z_c | x, y, EOS) is c_ref, measured once on the initial model
    3. score = beta_v * (log pi(z_c | x, y, EOS) - c_ref)
    4. A = (1 - tau) * A_v + tau * A_s, the group-normalised rewards and scores
    5. ranks minimise L_policy(A) + alpha * mean(w * (score - r_v)^2) over the finished solutions
    6. engines get the new weights

With `rollout.max_staleness` k engines work on the next k batches meanwhile (`batches`), and get the new
weights between two tokens. At k = 0 each batch is on-policy.

GRPO is this loop without 2 and 3, and with alpha and tau 0. The authors' code differs in four points
(docs/method.md): its mix reads the score at the next row's first token and not at z_c; an unfinished solution
gets a positive self-advantage; the pad token must be EOS; a reference model runs in each step.

The driver holds refs and one number a sample. Tokens and weights go from pool to pool through Ray's object
store.
"""

from typing import Any

from orchestrator.training.batches import batches
from orchestrator.training.calibration import check_assumption, measure_c_ref
from orchestrator.training.evaluate import evaluate_held_out, is_evaluated
from orchestrator.training.health_notes import note_health
from orchestrator.training.session import Session
from orchestrator.training.skipped import note_skipped
from orchestrator.training.step_metrics import step_metrics
from orchestrator.training.summary import summary_of
from orchestrator.training.train_batch import estimate_advantages, make_train_batch
from orchestrator.training.unfinished import warn_if_unfinished


def run_steps(session: Session) -> dict[str, Any]:
    """Train from the session's step to the run's last one. Returns the run's summary.

    Raises:
        StopRequested: Someone asked the run to stop; a checkpoint of its last finished step is written.
        Diverged: Losses, gradients or weights are not finite.
        RunError: The method's assumption does not hold, a checkpoint cannot be written, or a health rule is
            broken and `health.stop` is set.
        RayActorError, ObjectLostError: A rank died, or data died with its node. Rewind the session and call
            again.
    """
    config, clock = session.config, session.clock
    with session.saved_when_stopped():
        _start(session)
        for step, batch in batches(session, ahead=config.rollout.max_staleness):
            warn_if_unfinished(session, batch)
            reference = session.reference_logprobs(batch)
            scores = session.scores(batch, reference)
            advantages = estimate_advantages(config, batch, scores, step)
            streamed = session.streamed()
            sums = session.learn(make_train_batch(config, batch, advantages, reference, step, streamed))
            with clock("sync"):
                session.pools.publish(step)
            clock.stop("step")
            session.record(step, step_metrics(step, batch, scores, sums, clock.seconds))
            note_skipped(session, sums, batch, scores, advantages)
            session.keep(batch, scores, advantages)
            note_health(session)
            if session.evaluation_is_due():
                evaluate_held_out(session)
        return _finish(session)


def _start(session: Session) -> None:
    """Bring the engines to the session's weights. Measure the initial model, or make up a due evaluation."""
    session.pools.publish(session.step)
    with session.stop.interruptible():
        session.pools.wait_ready()
    session.start.pools_ready()
    if session.at_start:
        session.c_ref = measure_c_ref(session)
        check_assumption(session)
        session.base = evaluate_held_out(session)
        return
    if session.branched:
        check_assumption(session)  # the trunk has no beta_v, and has evaluated its last step
    elif session.evaluation_is_due() and not is_evaluated(session):
        evaluate_held_out(session)


def _finish(session: Session) -> dict[str, Any]:
    """Evaluate the trained model and write the summary."""
    if session.step == 0:
        session.save()
    trained = session.base if session.step == 0 else evaluate_held_out(session)
    summary = summary_of(session, trained)
    session.tracker.log_summary(summary)
    return summary
