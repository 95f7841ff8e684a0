"""The environment variables that a sweep sets, all in one place: they change the whole process."""

import os

TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each run writes its own metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the sweep handles Ctrl-C
    "TUNE_GLOBAL_CHECKPOINT_S": "60",  # a sweep resumes from its ledger and never reads Tune's state
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1e9",  # RoomWatch warns, and names what is missing
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables that no option turns off
}


def configure_tune() -> None:
    """Set up Ray Tune in the sweep's process. Tune takes these settings from the environment alone."""
    os.environ.update(TUNE_SETTINGS)


def use_tracking_server(uri: str) -> None:
    """Make `uri` the MLflow server of this process, which trains one trial and ends with it.

    The address comes from the environment of the sweep's process and may hold a password. A run saves its
    settings, so the address is passed on in the environment and not as `tracking.uri`.
    """
    os.environ["MLFLOW_TRACKING_URI"] = uri
