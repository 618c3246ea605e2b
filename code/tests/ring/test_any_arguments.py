"""Arguments of any type on any rank: either all ranks raise, or all results are right; and the next call is right."""

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import verbs
from ranks import RankError

pytestmark = pytest.mark.xdist_group("ranks")


def changed(rank, world_size, verb, changes):
    return verbs.call(rank, world_size, verb, changes[rank])


def some(names):
    """Calls of one of these verbs with up to two arguments replaced on each rank, as (verb, changes of each rank)."""

    def of(verb):
        change = st.tuples(st.sampled_from(verbs.ARGUMENTS[verb]), st.sampled_from(sorted(verbs.VALUES)))
        # A callable is a backend, and what it raises is its own.
        change = change.filter(lambda drawn: drawn != ("block", "object"))
        changes = st.lists(change, max_size=2, unique_by=lambda each: each[0]).map(tuple)
        alike = st.tuples(changes, st.integers(1, 3)).map(lambda drawn: (drawn[0],) * drawn[1])
        return st.tuples(st.just(verb), st.lists(changes, min_size=1, max_size=3).map(tuple) | alike)

    return st.sampled_from(names).flatmap(of)


def check(ranks, verb, changes):
    ranks = ranks(len(changes))
    results = ranks.attempt(changed, verb, changes)
    errors = [result for result in results if isinstance(result, RankError)]
    if errors:
        assert len(errors) == len(results), results
        assert {error.kind for error in errors} <= {"Disagreement", "ValueError"}, results
    elif verb in verbs.ATTENTION:
        given = {name: verbs.VALUES[value](None) for name, value in changes[0] if name in ("causal", "scale")}
        verbs.assert_right(verb, results, **given)
    else:
        assert all(result.equal(results[0]) for result in results)
    verbs.assert_right(verb, ranks.run(verbs.call, verb))


# Examples are not shrunk: if a call hangs, each attempt would.
ON_RANKS = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)


@settings(ON_RANKS, max_examples=30)
@given(call=some(verbs.ATTENTION))
@example(call=("ring_attention", ((), (("causal", "np.True_"),))))
@example(call=("ring_attention", ((("causal", "1"),), (("causal", "True"),))))
@example(call=("ring_attention", ((("causal", "np.True_"),), (("causal", "True"),))))
@example(call=("ring_attention", ((("scale", "string"),), ())))
@example(call=("ring_attention", ((("scale", "np.float32"),), (("scale", "np.float32"),))))
@example(call=("ring_attention", ((), (), (("q", "None"),))))
@example(call=("ring_attention", ((), (), (("q", "numpy"),))))
@example(call=("ring_attention", ((("q", "meta"), ("k", "meta")), ())))
@example(call=("ring_attention", ((), (("group", "0"),))))
@example(call=("ring_attention", ((("q", "float8"), ("k", "sparse")),) * 2))
@example(call=("ring_decode", ((("q", "None"),), ())))
@example(call=("ring_decode", ((), (("group", "0"),))))
@example(call=("ring_decode", ((), (("scale", "huge"),))))
@example(call=("ring_decode", ((("k", "sparse"),), (("k", "sparse"),))))
def test_attention(ranks, call):
    check(ranks, *call)


@settings(ON_RANKS, max_examples=15)
@given(call=some(verbs.MODELS))
@example(call=("ring_prefill", ((), (("model", "None"),))))
@example(call=("ring_prefill", ((("all_logits", "1"),), (("all_logits", "True"),))))
@example(call=("ring_prefill", ((("all_logits", "np.True_"),), (("all_logits", "True"),))))
@example(call=("ring_prefill", ((("group", "0"),), ())))
@example(call=("ring_decode_step", ((), (("cache", "None"),))))
@example(call=("ring_prefill", ((("input_ids", "sparse"),),)))
@example(call=("ring_prefill", ((("decode_speeds", "meta"),),)))
@example(call=("ring_decode_step", ((("token_ids", "meta"),),)))
@example(call=("ring_decode_step", ((("token_ids", "numpy"),), (), ())))
@example(call=("ring_generate", ((("seed", "string"),), ())))
@example(call=("ring_generate", ((), (("do_sample", "string"),))))
def test_models(ranks, call):
    pytest.importorskip("fms")
    check(ranks, *call)
