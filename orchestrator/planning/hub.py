"""The Hugging Face hub: whether it answers, and reading only the local cache where it does not."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

HUB_TIMEOUT_S = 5


def hub_answers() -> bool:
    """Ask the hub once, for a few seconds at most. An HTTP error is an answer too.

    False where HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    probe = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(probe, timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def local_cache_only() -> Iterator[None]:
    """Make the hub's libraries read only the local cache in this block, instead of retrying each request.

    HF_HUB_OFFLINE would do the same for the whole process, and only before the libraries are imported.
    """
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
