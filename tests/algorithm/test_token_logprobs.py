import pytest
import torch

from orchestrator.algorithm.advantages import mix_self_rewards
from orchestrator.algorithm.self_reward import self_reward_score
from orchestrator.algorithm.token_logprobs import LogProbHead, token_logprobs

TOKENS, HIDDEN, VOCAB = 11, 5, 7


def problem(dtype=torch.float64, bias=True, tokens=TOKENS):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    offset = (
        torch.randn(VOCAB, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        if bias
        else None
    )
    return hidden, weight, offset, torch.randint(VOCAB, (tokens,), generator=generator)


def plain(hidden, weight, bias, targets):
    """The same by autograd, with the whole [tokens, vocab] tensor."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    all_logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return all_logprobs.gather(1, targets[:, None]).squeeze(1), -(all_logprobs.exp() * all_logprobs).sum(-1)


def gradients(function, inputs):
    coefficients = torch.linspace(-1, 2, len(inputs[3]))
    logprobs, _ = function(*inputs)
    leaves = [leaf for leaf in inputs[:3] if leaf is not None]
    return torch.autograd.grad((logprobs * coefficients.to(logprobs.dtype)).sum(), leaves)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_tokens", [1, 4, TOKENS, 1024])
def test_values_and_gradients_are_those_of_plain_autograd_for_any_chunk(chunk_tokens, bias):
    inputs = problem(bias=bias)

    def chunked(*inputs):
        return token_logprobs(*inputs, chunk_tokens=chunk_tokens)

    for ours, theirs in zip(chunked(*inputs), plain(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    for ours, theirs in zip(gradients(chunked, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_gradcheck():
    hidden, weight, bias, targets = problem()
    assert torch.autograd.gradcheck(
        lambda *leaves: token_logprobs(*leaves, targets, chunk_tokens=4)[0], (hidden, weight, bias)
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_precision(dtype, tolerance):
    inputs = problem(dtype)
    logprobs, entropy = token_logprobs(*inputs, chunk_tokens=4)
    assert logprobs.dtype == entropy.dtype == torch.float32
    exact = [leaf.detach().double().requires_grad_() for leaf in inputs[:3]]
    expected_logprobs, expected_entropy = plain(*exact, inputs[3])
    torch.testing.assert_close(logprobs.double(), expected_logprobs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=tolerance, atol=tolerance)

    def chunked(*inputs):
        return token_logprobs(*inputs, chunk_tokens=4)

    for leaf, ours, theirs in zip(
        inputs, gradients(chunked, inputs), gradients(plain, (*exact, inputs[3])), strict=False
    ):
        assert ours.dtype == leaf.dtype
        assert (ours.double() - theirs).norm() <= tolerance * theirs.norm()


def test_softmax_of_bfloat16_logits_is_taken_in_float32():
    inputs = problem(torch.bfloat16)
    torch.testing.assert_close(token_logprobs(*inputs)[0], plain(*inputs)[0], rtol=0, atol=1e-6)


def test_weight_gradients_of_many_chunks_are_summed_in_float32():
    """512 chunks of gradient 1/2: a bfloat16 sum stops at 128, where 1/2 is below its last bit."""
    tokens = 512
    hidden = torch.ones(tokens, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    token_logprobs(hidden, weight, None, torch.zeros(tokens, dtype=torch.long), chunk_tokens=1)[
        0
    ].sum().backward()
    assert weight.grad.flatten().tolist() == [256.0, -256.0]


def test_no_tokens_still_reach_every_parameter():
    """A rank without samples must take part in the backward pass."""
    hidden, weight, bias, targets = problem(tokens=0)
    logprobs, entropy = token_logprobs(hidden, weight, bias, targets)
    logprobs.sum().backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert (weight.grad == 0).all()
    assert (bias.grad == 0).all()
    assert hidden.grad.shape == (0, HIDDEN)


def test_frozen_weight_gets_no_gradient():
    hidden, weight, bias, targets = problem()
    weight.requires_grad_(False)
    expected = gradients(plain, (hidden, weight.detach().clone().requires_grad_(), bias, targets))
    token_logprobs(hidden, weight, bias, targets)[0].mul(
        torch.linspace(-1, 2, TOKENS).double()
    ).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, expected[0])


def test_entropy_carries_no_gradient():
    logprobs, entropy = token_logprobs(*problem())
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_chunk_must_hold_a_token():
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        token_logprobs(*problem(), chunk_tokens=0)


def test_no_tensor_holds_all_logits():
    """Neither pass makes a tensor of more than chunk x vocab (or weight) elements."""
    tokens, vocab, chunk_tokens = 64, 128, 8
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(
                leaf.numel()
                for leaf in torch.utils._pytree.tree_leaves(result)
                if isinstance(leaf, torch.Tensor)
            )
            return result

    hidden, weight = torch.randn(tokens, 4, requires_grad=True), torch.randn(vocab, 4, requires_grad=True)
    with Sizes():
        token_logprobs(hidden, weight, None, torch.zeros(tokens, dtype=torch.long), chunk_tokens)[
            0
        ].sum().backward()
    assert max(sizes) == chunk_tokens * vocab


def test_head_shares_the_parameters_of_the_linear_layer():
    embedding, output = torch.nn.Embedding(VOCAB, HIDDEN), torch.nn.Linear(HIDDEN, VOCAB)
    output.weight = embedding.weight
    head = LogProbHead.from_linear(output)
    assert head.weight is embedding.weight
    assert head.bias is output.bias
    assert LogProbHead.from_linear(torch.nn.Linear(HIDDEN, VOCAB, bias=False)).bias is None
    targets = torch.arange(VOCAB)
    torch.testing.assert_close(
        head(embedding(targets), targets)[0],
        output(embedding(targets)).log_softmax(-1).diagonal(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_head_keeps_the_probability_of_a_watched_token():
    hidden, weight, _, targets = problem(bias=False)
    head = LogProbHead(HIDDEN, VOCAB, bias=False)
    head.weight.data = weight.detach().clone()
    head.chunk_tokens = 2
    unwatched = [part.detach() for part in head(hidden, targets)]
    assert len(head.watched_probs) == 0
    head.watched = 3
    found = head(hidden, targets)
    torch.testing.assert_close(
        head.watched_probs, torch.nn.functional.linear(hidden, weight).softmax(-1)[:, 3]
    )
    assert not head.watched_probs.requires_grad
    for part, expected in zip(found, unwatched, strict=True):
        assert torch.equal(part, expected)
    found[0].sum().backward()


def test_backward_reads_the_parameter_as_it_is_gathered_again():
    """ZeRO-3 frees the weight's data after the forward pass and gathers it elsewhere for the backward."""
    hidden, weight, _, targets = problem(bias=False)
    (expected_hidden, expected_weight) = gradients(plain, (hidden, weight, None, targets))
    head = LogProbHead.from_linear(torch.nn.Linear(HIDDEN, VOCAB, bias=False))
    gathered = weight.detach().clone()
    head.weight.data = gathered.clone()
    loss = (head(hidden, targets)[0] * torch.linspace(-1, 2, TOKENS).double()).sum()
    head.weight.data = torch.empty(0, dtype=torch.float64)
    head.weight.data = gathered.clone()
    loss.backward()
    torch.testing.assert_close(head.weight.grad, expected_weight)
    torch.testing.assert_close(hidden.grad, expected_hidden)


def test_no_copy_of_the_weight_outlives_the_forward_pass():
    """Otherwise every rank would hold the whole head from the forward to the backward pass."""
    hidden, _, _, targets = problem(torch.float32)
    head = LogProbHead(HIDDEN, VOCAB, bias=False)
    loss = head(hidden, targets)[0].sum()
    head.weight.data = torch.zeros(VOCAB, HIDDEN)
    loss.backward()
    assert (hidden.grad == 0).all()


def test_reference_fault_1_self_advantage_reads_z_at_the_eos_position():
    """Two solutions in one row, then padding: z_c's log-prob at the two EOS says that the first one is
    better.

    The reference implementation reads the log-prob of the token that follows in the row, which says the
    opposite.
    """
    pad, first_of_second, eos, z_c, c_ref, beta_v = 0, 3, 5, 6, -4.0, 0.25
    row = torch.tensor([1, 2, eos, first_of_second, 4, eos, pad])
    next_token = torch.full((len(row), VOCAB), 1 / VOCAB)
    next_token[2] = torch.tensor([0.1, 0.1, 0.1, 0.01, 0.09, 0.1, 0.5])
    next_token[5] = torch.tensor([0.6, 0.1, 0.05, 0.1, 0.05, 0.05, 0.05])
    head = LogProbHead(VOCAB, VOCAB, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(VOCAB))  # the logits are the hidden states

    def self_advantages(targets):
        scores = self_reward_score(head(next_token.log()[row == eos], targets)[0], c_ref, beta_v)
        return mix_self_rewards(
            torch.zeros(2), scores, torch.tensor([True, True]), torch.tensor([0, 0]), tau=1.0, filter_std=0.0
        )

    # Scores 1 + log(0.5) / 4 = 0.827 and 1 + log(0.05) / 4 = 0.251: two values of one group lie at
    # +-sqrt(1/2).
    assert self_advantages(torch.tensor([z_c, z_c])).tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])
    assert self_advantages(torch.tensor([first_of_second, pad])).tolist() == pytest.approx(
        [-(0.5**0.5), 0.5**0.5]
    )
