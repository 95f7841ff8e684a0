"""An engine on a CPU loads the code that an earlier start compiled, which vLLM alone would compile again.

vLLM keeps what torch.compile made in its cache. When it reads that back, it calls a method that only its own
backend's functions have; on a CPU they are torch's, so the load fails and costs ten seconds at each start.
"""

from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable


def let_vllm_load_compiled_code() -> None:
    """Give torch's functions that method. It has nothing to do: they are whole once they are read."""
    if not hasattr(BundledAOTAutogradSerializableCallable, "finalize_loading"):
        setattr(BundledAOTAutogradSerializableCallable, "finalize_loading", _is_whole)  # noqa: B010 (new)


def _is_whole(function: BundledAOTAutogradSerializableCallable, vllm_config: object) -> None:
    """vLLM's `finalize_loading`."""
