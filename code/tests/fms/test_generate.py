"""Decode and generation over gloo ranks: the tokens of stock FMS in one process, and where their KV goes."""

import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("fms")

from fms.utils.generation import generate

import fms_models
from heteroring.fms import continuation, ring_decode_step, ring_generate, ring_prefill
from heteroring.fms.continuation import Continuation
from heteroring.fms.decode import decode_forward
from heteroring.fms.generate import EOS_EVERY, choose
from heteroring.ring.partition import Partition
from oracle import assert_same_logits


def stock_tokens(name, ids, new_tokens, **keywords):
    model = fms_models.stock(name)
    return generate(model, ids, max_new_tokens=new_tokens, use_cache=True, **{"do_sample": False, **keywords})


def generated(rank, world_size, name, layout, lens, new_tokens, batch, keywords):
    model = fms_models.ring(name)
    return ring_generate(model, fms_models.prompt(sum(lens), batch), Partition(layout, lens), new_tokens, **keywords)


def likeliest(logits):
    return logits.argmax(-1, keepdim=True)


def replayed(rank, world_size, name, layout, lens, new_tokens, seeds, changes):
    """Greedy tokens of prompts of two sequences, one for each seed, whose steps alternate.

    Each step but the first is the one that a CUDA graph would replay, run by the host: the same call, on the same
    tensors, of which only the values change. The caches are poisoned where nothing is held.
    """
    model = fms_models.ring(name, **changes)
    made = []
    for seed in seeds:
        ids = fms_models.prompt(sum(lens), 2, seed)
        prefill = ring_prefill(model, ids, Partition(layout, lens), capacity=new_tokens - 1)
        for x in (x for layer in prefill.cache.layers for x in layer):
            x[:, :, lens[rank] :] = torch.nan
        made.append(Continuation(model, prefill, new_tokens, likeliest))
        made[-1].advance()
        step = partial(take_a_step, made[-1], model, prefill.cache)
        made[-1]._graph = SimpleNamespace(replay=step)
    for _ in range(new_tokens - 2):
        for each in made:
            each.advance()
    for each in made:
        assert each._cache.room == 0
        assert int(each._cache.steps) == new_tokens - 1
    return [each.ids for each in made]


def take_a_step(made, model, cache):
    with torch.no_grad():
        made._take(decode_forward(model, made._new, cache))


LONG = {"max_expected_seq_len": 320, "nlayers": 1}


@pytest.mark.parametrize(
    ("name", "layout", "lens", "new_tokens", "seeds", "changes"),
    [
        *((name, "zigzag", (29, 8), 20, (1,), {}) for name in fms_models.TINY if name != "llama3"),
        ("llama3", "zigzag", (29, 8), 256, (1,), LONG),
        ("llama3", "contiguous", (20, 0, 17), 20, (1, 2), {}),
        ("mixtral", "zigzag", (0, 20), 20, (1,), {}),
    ],
    ids=str,
)
def test_greedy_tokens_of_replayed_steps_are_those_of_one_process(
    ranks, name, layout, lens, new_tokens, seeds, changes
):
    model = fms_models.stock(name, **changes)
    results = ranks(len(lens)).run(replayed, name, layout, lens, new_tokens, seeds, changes)
    for i, seed in enumerate(seeds):
        ids = fms_models.prompt(sum(lens), 2, seed)
        want = generate(model, ids, max_new_tokens=new_tokens, use_cache=True, do_sample=False)
        for result in results:
            assert torch.equal(result[i], want[:, sum(lens) :])


@pytest.mark.slow
@pytest.mark.parametrize("captured", [False, True])
def test_it_ends_at_eos_however_seldom_that_is_looked_at(monkeypatch, captured):
    monkeypatch.setattr(Continuation, "captured", captured)
    ids = fms_models.prompt(29)
    model, most = fms_models.ring("llama3"), 2 * EOS_EVERY + 2
    free = stock_tokens("llama3", ids, most)
    new = free[0, 29:].tolist()
    for at in (0, 1, EOS_EVERY - 1, EOS_EVERY, 2 * EOS_EVERY):
        got = ring_generate(model, ids, max_new_tokens=most, eos_token_id=new[at])
        assert torch.equal(got, free[:, : 29 + new.index(new[at]) + 1])


def test_what_cannot_be_captured_runs_eagerly_and_says_so(monkeypatch):
    """On one rank or on all of them: no rank replays steps that another runs eagerly."""
    model, ids = fms_models.ring("llama3"), fms_models.prompt(9)
    made = Continuation(model, ring_prefill(model, ids, capacity=4), 5, likeliest)
    made.capture()  # on a CPU: nothing to say
    made._new = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **keywords: nullcontext())
    monkeypatch.setattr(made, "_take", lambda logits: None)
    monkeypatch.setattr(continuation, "decode_forward", lambda *_: 1 / 0)
    monkeypatch.setattr(made, "_on_all_ranks", lambda mine: mine)
    with pytest.warns(UserWarning, match="cannot be captured, so tokens are made one by one: division by zero"):
        made.capture()
    assert not made.captured
    monkeypatch.setattr(continuation, "decode_forward", lambda *_: None)
    monkeypatch.setattr(made, "_on_all_ranks", lambda mine: False)
    with pytest.warns(UserWarning, match="another rank cannot record it"):
        made.capture()
    assert not made.captured
    monkeypatch.setattr(made, "_on_all_ranks", lambda mine: mine)
    made.capture()
    assert made.captured


@pytest.mark.parametrize("sampling", [{"temperature": 1.5, "top_k": 5}, {"temperature": 0.7, "top_k": 0}], ids=str)
def test_a_seed_draws_the_tokens_that_it_draws_in_one_process(ranks, sampling):
    ids = fms_models.prompt(29, 2)
    model = fms_models.stock("llama3")
    torch.manual_seed(11)
    want = generate(model, ids, max_new_tokens=12, use_cache=True, do_sample=True, **sampling)
    keywords = {"do_sample": True, "seed": 11, **sampling}
    state = torch.get_rng_state()
    for got in ranks(2).run(generated, "llama3", "zigzag", (20, 9), 12, 2, keywords):
        assert torch.equal(got, want)
    assert torch.equal(torch.get_rng_state(), state)
    other = ranks(2).run(generated, "llama3", "zigzag", (20, 9), 12, 2, keywords | {"seed": 12})
    assert torch.equal(other[0], other[1])
    assert not torch.equal(other[0], want)


def exact_distribution(logits, temperature, top_k):
    """Probabilities [V] of logits [V] in 80 bits, whose range holds every quotient of a logit and a temperature."""
    x = logits.double().numpy().astype(np.longdouble)
    if top_k:
        x[x < np.sort(x)[-top_k]] = -np.inf
    x = np.exp((x - x.max()) / np.longdouble(temperature))
    return (x / x.sum()).astype(np.float64)


LEAST, MOST = 5e-324, sys.float_info.max
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@settings(max_examples=60, deadline=None)
@given(dtypes, st.floats(LEAST, MOST) | st.floats(0.01, 10), st.integers(0, 8), st.integers(0, 2**32))
@example(torch.float16, 1e-5, 0, 0)
@example(torch.bfloat16, 1e-40, 3, 0)
@example(torch.float16, 1e30, 1, 0)
@example(torch.float32, LEAST, 0, 0)
@example(torch.float64, MOST, 2, 0)
def test_tokens_are_drawn_as_the_temperature_says(dtype, temperature, top_k, seed):
    """For any positive, finite temperature: near 0 the likeliest token, towards infinity any of the top_k."""
    draws = 2000
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(8, generator=generator) * 5).to(dtype)
    drawn = choose(logits.expand(draws, 8), generator, temperature, top_k)
    assert drawn.shape == (draws, 1)
    want = exact_distribution(logits, temperature, top_k)
    share = drawn.flatten().bincount(minlength=8).numpy() / draws
    assert (np.abs(share - want) <= 6 * np.sqrt(want * (1 - want) / draws) + 6 / draws * (want > 1e-9)).all()


def test_settings_may_be_numpys(ranks):
    plain = {"do_sample": True, "temperature": 0.5, "top_k": 5, "seed": 3}
    numpys = {"do_sample": np.True_, "temperature": np.float16(0.5), "top_k": np.uint8(5), "seed": np.int64(3)}
    want, _ = ranks(2).run(generated, "llama3", "zigzag", (120, 9), 12, 1, plain)
    for got in ranks(2).run(generated, "llama3", "zigzag", (120, 9), np.int8(12), 1, numpys):
        assert torch.equal(got, want)


def test_without_a_seed_ranks_still_agree(ranks):
    first, second = ranks(2).run(generated, "llama", "zigzag", (20, 9), 12, 2, {"do_sample": True, "top_k": 0})
    assert torch.equal(first, second)


def test_it_ends_at_eos_as_in_one_process(ranks):
    ids = fms_models.prompt(29)
    free = stock_tokens("llama3", ids, 12)
    eos = int(free[0, 29 + 7])
    want = stock_tokens("llama3", ids, 12, eos_token_id=eos)
    assert 29 < want.shape[1] <= 29 + 8
    for got in ranks(2).run(generated, "llama3", "zigzag", (20, 9), 12, 1, {"eos_token_id": eos}):
        assert torch.equal(got, want)


def test_a_batch_goes_on_until_every_sequence_has_ended(ranks):
    """FMS's own generate is meant to, but its check of a batch compares every sequence with every other."""
    many = fms_models.prompt(29, 16)
    free = stock_tokens("llama3", many, 32)[:, 29:].tolist()
    first = {(i, eos): row.index(eos) for i, row in enumerate(free) for eos in row}
    # Two sequences that both produce one token, at different steps and before the end.
    i, j, eos = next(
        (i, j, eos) for i, eos in first for j in range(16) if first[i, eos] < first.get((j, eos), 0) < 31 and i != j
    )
    last = first[j, eos]
    for got in ranks(2).run(generated_from, many[[i, j]], (20, 9), 32, eos):
        assert got[:, 29:].tolist() == [free[i][: last + 1], free[j][: last + 1]]


def generated_from(rank, world_size, ids, lens, new_tokens, eos):
    return ring_generate(fms_models.ring("llama3"), ids, Partition.zigzag(lens), new_tokens, eos_token_id=eos)


def steps(rank, world_size, lens, new_tokens, speeds):
    """Where the cache lies, how many tokens each rank holds after each step, and the logits, fed with token 5."""
    model = fms_models.ring("llama3")
    _, cache = ring_prefill(
        model, fms_models.prompt(sum(lens), 2), Partition.zigzag(lens), capacity=new_tokens, decode_speeds=speeds
    )
    before = [x.data_ptr() for layer in cache.layers for x in layer]
    held, logits = [], []
    for _ in range(new_tokens):
        logits.append(ring_decode_step(model, torch.full((2, 1), 5), cache))
        held.append(cache.held)
    assert before == [x.data_ptr() for layer in cache.layers for x in layer]
    assert cache.room == 0
    assert cache.capacities == cache.held
    return held, logits


@pytest.mark.parametrize(
    ("lens", "speeds", "want"),
    [
        ((6, 3), None, [(6, 4), (6, 5), (6, 6), (7, 6), (7, 7), (8, 7)]),
        ((6, 3), (4, 1), [(7, 3), (8, 3), (9, 3), (10, 3), (11, 3), (12, 3)]),
        ((0, 4), None, [(1, 4), (2, 4), (3, 4), (4, 4), (5, 4), (5, 5)]),
    ],
    ids=["equal", "unequal", "empty"],
)
def test_new_tokens_go_where_decode_stays_balanced_and_logits_stay_right(ranks, lens, speeds, want):
    ids = torch.cat((fms_models.prompt(sum(lens), 2), torch.full((2, 6), 5)), 1)
    with torch.no_grad():
        exact = fms_models.stock("llama3")(ids)[:, sum(lens) :]
    for held, logits in ranks(2).run(steps, lens, 6, speeds):
        assert held == want
        assert_same_logits(torch.stack(logits, 1), exact)


def prefilled_in_inference_mode(rank, world_size):
    model = fms_models.ring("llama3")
    with torch.inference_mode():
        logits, cache = ring_prefill(model, fms_models.prompt(9), capacity=2)
        ring_decode_step(model, logits.argmax(-1), cache)
    return ring_decode_step(model, torch.tensor([5]), cache)


def test_a_cache_of_inference_mode_serves_outside_it(ranks):
    """The owner of the new token alone would fail to write it, and leave the others waiting."""
    first, second = ranks(2).run(prefilled_in_inference_mode)
    assert torch.equal(first, second)


def test_one_process_needs_no_group():
    ids = fms_models.prompt(29)
    got = ring_generate(fms_models.ring("mixtral"), ids, max_new_tokens=12)
    assert torch.equal(got, stock_tokens("mixtral", ids, 12))
