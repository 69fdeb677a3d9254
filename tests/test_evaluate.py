"""The sampler against its model, evaluations that are counted, stopped and refused, the command line."""

import json
import math
import random
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import data
import grpo
import guide_grpo
from data import UserError
from evaluate import PRESETS, Args, chunk_result, evaluate, main, read_args, report, start_line
from grpo import pad, token_logprobs
from machinery.command import command_line, stoppable
from machinery.draws import draw, sampling_logprobs
from machinery.kept import Kept, files_of
from machinery.names import labels
from machinery.sampler import Sample, Sampler
from tests.started import start
from verify import RIGHT, WRONG, Verifier

MODEL = "assets/countdown"


@pytest.fixture(scope="module")
def sampler():
    return Sampler(MODEL, device="cpu")


@pytest.fixture(scope="module")
def prompts(tokenizer):
    problems = data.load("countdown", "test", limit=6)
    # of two lengths
    return [data.render(tokenizer, p, "countdown", hinted=i % 2 == 0) for i, p in enumerate(problems)]


def rows(prompts, groups):
    return [(p, s) for p, group in zip(prompts, groups) for s in group]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_forward_pass(sampler, model, prompts, temperature):
    # Groups of unequal length in one batch: an accelerator pads on the left, so let this sampler do it too.
    for device_type in ("cpu", "padded"):
        one = [[(i, 4) for i in range(6)]]
        batches = one if device_type == "padded" else list(sampler._batches(prompts, 4, 16))
        assert len(batches) == (1 if device_type == "padded" else 2)
        for batch in batches:
            samples = sampler._generate_batch([prompts[i] for i, _ in batch], [n for _, n in batch],
                                              temperature, 16, 1.0, 0, torch.Generator().manual_seed(0))
            owners = [prompts[i] for i, n in batch for _ in range(n)]
            padded = pad(owners, [s.ids for s in samples], "cpu")
            logp_NT, _, mask_NT = token_logprobs(model, *padded, temperature)
            for row, mask, sample in zip(logp_NT, mask_NT, samples):
                assert len(sample.logprobs) == len(sample.ids) == mask.sum()
                torch.testing.assert_close(row[mask], torch.tensor(sample.logprobs), atol=1e-4, rtol=0)


def test_order_and_number_of_samples(sampler, prompts, tokenizer):
    groups = sampler.generate(prompts, 5, 1.0, 16, seed=0)
    assert [len(group) for group in groups] == [5] * 6
    # A response to a hinted prompt nearly always starts with the hinted move:
    # the groups are those of their prompts.
    hints = [tokenizer.decode(p).split("start with ")[1].rstrip(".\n") for p in prompts[::2]]
    starts = [[tokenizer.decode(s.ids).startswith(hint) for s in group]
              for hint, group in zip(hints, groups[::2])]
    assert np.mean(starts) > 0.8


def test_small_cache_splits_groups_and_keeps_the_order(prompts):
    small = Sampler(MODEL, device="cpu", cache_tokens=100)  # three or four rows at once
    groups = small.generate(prompts, 7, 0.0, 16, seed=0)
    whole = Sampler(MODEL, device="cpu").generate(prompts, 7, 0.0, 16, seed=0)
    assert [[s.ids for s in g] for g in groups] == [[s.ids for s in g] for g in whole]


def test_logits_of_all_rows_stay_within_their_limit(prompts, sampler, monkeypatch):
    limit, rows = 5 * sampler.n_embeddings, []
    monkeypatch.setattr("machinery.sampler.MOST_LOGITS", limit)

    def note(module, args, out):
        rows.append(out.logits[:, -1].numel())

    hook = sampler.model.register_forward_hook(note)
    groups = sampler.generate(prompts, 7, 1.0, 4, seed=0)
    hook.remove()
    assert [len(group) for group in groups] == [7] * 6 and max(rows) == limit


def test_draws_are_of_the_distribution():
    """Every frequency is within 4.5 standard errors, and what has no probability is never drawn."""
    p_V = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.2, 0.05, 0.0])
    drawn_N1 = draw(p_V.log().expand(200_000, -1), torch.Generator().manual_seed(0))
    assert drawn_N1.shape == (200_000, 1)
    share_V = torch.bincount(drawn_N1[:, 0], minlength=7) / 200_000
    assert ((share_V - p_V).abs() <= 4.5 * (p_V * (1 - p_V) / 200_000).sqrt()).all()
    assert (share_V[p_V == 0] == 0).all()


def test_same_seed_same_tokens_and_the_global_random_state_is_untouched(sampler, prompts):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = sampler.generate(prompts, 4, 1.0, 16, seed=(3, 1))
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    torch.manual_seed(99)  # whatever the trainer does with its own state
    ids = [s.ids for _, s in rows(prompts, first)]
    assert ids == [s.ids for _, s in rows(prompts, sampler.generate(prompts, 4, 1.0, 16, seed=(3, 1)))]
    assert ids != [s.ids for _, s in rows(prompts, sampler.generate(prompts, 4, 1.0, 16, seed=(3, 2)))]


def test_eos_is_part_of_a_finished_response_and_of_no_other(sampler, prompts, tokenizer):
    for _, sample in rows(prompts, sampler.generate(prompts, 8, 1.0, 16, seed=0)):
        assert sample.finished == (sample.ids[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in sample.ids[:-1]
    for _, sample in rows(prompts, sampler.generate(prompts, 8, 1.0, 5, seed=0)):  # a trace takes 10 or more
        assert not sample.finished and len(sample.ids) == 5


def test_frequencies_are_the_models_probabilities(sampler, model, prompts):
    n = 4096
    tokens = [s.ids[0] for s in sampler.generate(prompts[1:2], n, 0.7, 1, seed=5)[0]]
    p = (model(torch.tensor(prompts[1:2])).logits[0, -1] / 0.7).softmax(-1).detach()
    for token in p.topk(5).indices.tolist():
        error = math.sqrt(p[token] * (1 - p[token]) / n)
        assert abs(tokens.count(token) / n - p[token].item()) < 4.5 * error


def test_temperature_zero_is_greedy(sampler, model, prompts):
    (sample,) = sampler.generate(prompts[:1], 1, 0.0, 16, seed=0)[0]
    logits = model(torch.tensor([prompts[0] + sample.ids])).logits[0]
    assert logits[len(prompts[0]) - 1 : -1].argmax(-1).tolist() == sample.ids


def test_top_p_and_top_k_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    p = sampling_logprobs(logits, 1.0, top_p=0.7).exp()[0]  # 0.5 does not reach 0.7, 0.5 + 0.3 does
    torch.testing.assert_close(p, torch.tensor([0.5 / 0.8, 0.3 / 0.8, 0, 0]))
    torch.testing.assert_close(sampling_logprobs(logits, 1.0, top_k=1).exp()[0], torch.tensor([1.0, 0, 0, 0]))
    squared = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    torch.testing.assert_close(sampling_logprobs(logits, 0.5).exp()[0], squared / squared.sum())


def test_update_takes_over_all_weights_and_refuses_a_part(model, prompts):
    sampler = Sampler(MODEL, device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))

    def gap():
        samples = rows(prompts, sampler.generate(prompts, 2, 1.0, 16, seed=0))
        ids = pad([p for p, _ in samples], [s.ids for _, s in samples], "cpu")
        logp_NT, _, mask_NT = token_logprobs(model, *ids, 1.0)
        gaps = [r[m] - torch.tensor(s.logprobs) for r, m, (_, s) in zip(logp_NT, mask_NT, samples)]
        return max(gap.abs().max().item() for gap in gaps)

    assert gap() > 0.05  # stale
    sampler.update(model.named_parameters())
    assert gap() < 1e-4
    with pytest.raises(AssertionError, match="no new weights"):
        sampler.update(list(model.named_parameters())[:-1])


def test_evaluate_counts_what_the_verifier_says(sampler, tokenizer):
    problems = data.load("countdown", "test", limit=8)
    prompts, _ = data.encode(problems, tokenizer, "countdown", 64)
    with Verifier(1) as verifier:
        out = evaluate(sampler, verifier, prompts, 16, 1.0, 16, seed=1)
    assert [row["id"] for row in out["problems"]] == [p.id for p in problems]
    assert sum(row["c"] for row in out["problems"]) == out["verdicts"]["right"] > 0
    assert sum(out["verdicts"].values()) == 8 * 16


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_entropy_is_that_of_the_sampling_distribution(temperature, sampler, model, prompts):
    """Two tokens at most: their entropies by enumeration of the first one, over the expected length."""
    prompt = data.Prompt(data.Problem("p", "", "1"), prompts[1], None)
    p_V = (model(torch.tensor([prompt.plain])).logits[0, -1] / temperature).softmax(-1).detach()
    nats, tokens = torch.special.entr(p_V).sum().item(), 1.0
    likely = [v for v in range(len(p_V)) if p_V[v] > 1e-6 and v not in sampler.stop_ids]
    for v in likely:
        with torch.no_grad():
            q_V = (model(torch.tensor([[*prompt.plain, v]])).logits[0, -1] / temperature).softmax(-1)
        nats += p_V[v].item() * torch.special.entr(q_V).sum().item()
        tokens += p_V[v].item()
    with Verifier(1) as verifier:
        found = evaluate(sampler, verifier, [prompt], 4096, temperature, 2)["entropy"]
    assert nats / tokens > 0.1
    assert found == pytest.approx(nats / tokens, abs=0.03)  # 4.5 standard errors


def test_the_entropy_by_hand_is_a_mean_over_tokens():
    prompt = data.Prompt(data.Problem("p", "", ""), [], None)
    samples = [Sample([1], [-3.0], True), Sample([1, 2, 3], [-1.0, 0.0, 0.0], False)]
    made = chunk_result([prompt, prompt], [samples, samples], [[RIGHT, WRONG]] * 2)
    assert made["sums"] == {"tokens": 8, "logp": -8.0}  # a mean over responses would be 5/3
    samples[1].text = "5" * 600 + "6" * 600
    made = chunk_result([prompt], [samples], [[RIGHT, WRONG]])
    assert made["samples"] == [{"question": "", "right": "", "wrong": f"{'5' * 500} [..] {'6' * 500}"}]
    fake = Fake()
    fake.generate = lambda contexts, *_: [samples] * len(contexts)
    fake.score_groups = lambda groups, _: [[RIGHT, WRONG]] * len(groups)
    assert evaluate(fake, fake, [prompt] * 3, 2, 1.0, 16)["entropy"] == 1.0
    assert evaluate(fake, fake, [prompt] * 3, 2, 0.0, 16)["entropy"] is None  # greedy: no draws


@pytest.mark.parametrize("positions, max_tokens, kept, said", [
    (25, 0, 3, "--max-tokens 5: what the model's 25 positions leave beside a prompt of 20\n"),
    (20, 0, 2, "--max-tokens 10: what the model's 20 positions leave beside a prompt of 10\n"),
    (11, 6, 1, ""),
    (math.inf, 0, 3, ""),
    (5, 0, 0, "every prompt and 1 tokens for the response exceed the model's 5 positions"),
    (24, 30, 0, "every prompt and 30 tokens for the response exceed the model's 24 positions"),
])
def test_prompts_without_room_are_left_out(positions, max_tokens, kept, said, tmp_path, monkeypatch, capsys):
    rows = [{"question": "a" * n, "answer": "A", "domain": "choice", "meta": {}} for n in (4, 9, 19)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampler = FixedSampler(positions)
    monkeypatch.setattr("evaluate.Sampler", lambda *_, **__: sampler)
    monkeypatch.setattr("evaluate.check_sampler", lambda _: None)
    args = Args(model=MODEL, data=str(tmp_path / "rows.jsonl"), template="plain", n=2, max_tokens=max_tokens,
                out=str(tmp_path / "out.json"))
    if not kept:
        with pytest.raises(UserError, match=said):
            main(args)
        return
    main(args)
    out = json.loads((tmp_path / "out.json").read_text())
    assert len(out["problems"]) == kept and out["too_long"] == 3 - kept
    assert out["sampling"]["max_tokens"] == sampler.asked and capsys.readouterr().err == said


@pytest.fixture
def says_one(monkeypatch):
    monkeypatch.setattr("evaluate.Sampler", lambda *_, **__: FixedSampler(math.inf))
    monkeypatch.setattr("evaluate.check_sampler", lambda _: None)


def test_several_data_sets_make_one_result(says_one, tmp_path, capsys):
    for name, answers in (("one", "1234"), ("two", "11")):
        rows = [{"id": str(i), "question": "?", "answer": answer} for i, answer in enumerate(answers)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = f"{tmp_path}/one.jsonl, {tmp_path}/two.jsonl"
    args = {"model": MODEL, "template": "plain", "n": 2, "out": str(tmp_path / "out.json")}
    main(Args(**args, data=files))
    out = json.loads((tmp_path / "out.json").read_text())
    assert [row["data"] for row in out["problems"]] == ["one"] * 4 + ["two"] * 2
    assert [row["id"] for row in out["problems"]][3:5] == ["one: 3", "two: 0"]
    assert [row["c"] for row in out["problems"]] == [2, 0, 0, 0, 2, 2]
    said = [line.replace(" ", "") for line in capsys.readouterr().out.splitlines()]
    for line in ("|one|4|0.250|0.250|", "|two|2|1.000|1.000|", "|macroaverage||0.625|0.625|"):
        assert line in said
    with pytest.raises(UserError, match="one data set twice"):
        main(Args(**args, data=f"{tmp_path}/one.jsonl,{tmp_path}/one.jsonl"))
    main(Args(**args, data=f"{tmp_path}/one.jsonl"))
    assert "macro" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["problems"][3].keys() == {
        "id", "domain", "n", "c", "mean_length"}


def test_each_data_set_has_its_own_template(says_one, tmp_path):
    main(Args(model=MODEL, data="sea,countdown", limit=2, n=1, out=str(tmp_path / "out.json")))
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["template"] == "plain, countdown" and len(out["problems"]) == 4
    assert [row["domain"] for row in out["problems"]][2:] == ["countdown"] * 2


def test_files_are_named_as_short_as_tells_them_apart():
    assert labels(["runs/base.json", "b/trained.json"]) == ["base", "trained"]
    assert labels(["a/eval.json", "b/eval.json"]) == ["a/eval.json", "b/eval.json"]
    assert labels(["a.json", "a.json"]) == ["a.json (1)", "a.json (2)"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_way_to_options(preset, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--preset", preset])
    args = read_args()
    assert {key: getattr(args, key) for key in PRESETS[preset]} == PRESETS[preset]
    own = ["--n", "64", "--top-p", "1.0", "--template", "auto"]  # the defaults without a preset, two of them
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *own, f"--preset={preset}"])
    args = read_args()
    assert (args.n, args.top_p, args.template) == (64, 1.0, "auto")
    assert args.temperature == PRESETS[preset]["temperature"]


class FixedSampler:
    """Says 1 to everything, if prompt and response fit its positions."""

    def __init__(self, positions):
        self.tokenizer, self.positions = AutoTokenizer.from_pretrained(MODEL), positions

    def generate(self, prompts, n, temperature, max_tokens, *_):
        assert max_tokens >= 1 and max(map(len, prompts)) + max_tokens <= self.positions
        self.asked = max_tokens
        return [[Sample([1], [0.0], True, "\\boxed{1}")] * n for _ in prompts]


# ---- with and without the hint -----------------------------------------------------------------------------

class Helped(FixedSampler):
    """Says A in its first sample, with a hint in all."""

    def __init__(self, stop_at=math.inf):
        super().__init__(math.inf)
        self.stop_at, self.calls = stop_at, []

    def generate(self, prompts, n, temperature, max_tokens, stream, *_):
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        hinted = ["Hint" in self.tokenizer.decode(prompt) for prompt in prompts]
        self.calls.append((hinted, stream))
        groups = []
        for helped in hinted:
            said = ["\\boxed{A}"] + ["\\boxed{A}" if helped else "\\boxed{B}"] * (n - 1)
            groups.append([Sample([1], [0.0], True, text) for text in said])
        return groups


@pytest.fixture
def hints(tmp_path, monkeypatch):
    """The args of an evaluation of five problems, of which three have a hint."""
    row = {"question": "?", "answer": "A", "domain": "choice", "meta": {}}  # which takes no process to judge
    rows = [{**row, "id": str(i), **({"hint": "the first"} if i % 2 == 0 else {})} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("evaluate.check_sampler", lambda _: None)
    return {"model": MODEL, "data": f"{tmp_path}/rows.jsonl", "template": "plain", "n": 4,
            "out": f"{tmp_path}/r.json"}


@pytest.mark.draws
def test_the_hints_effect_is_one_command_and_one_picture(hints, tmp_path, monkeypatch, capsys):
    sampler = Helped()
    monkeypatch.setattr("evaluate.Sampler", lambda *_, **__: sampler)
    main(Args(**hints, hint_effect=True, plot=f"{tmp_path}/p.png"))
    plain, hinted = (json.loads((tmp_path / f"r_{way}.json").read_text()) for way in ("plain", "hinted"))
    for result, c in ((plain, 1), (hinted, 4)):  # the same problems, those that have a hint
        assert [(row["id"], row["c"]) for row in result["problems"]] == [("0", c), ("2", c), ("4", c)]
        assert result["no_hint"] == 2
    assert not plain["hinted"] and hinted["hinted"]
    assert [of for of, _ in sampler.calls] == [[False] * 3, [True] * 3]
    assert sampler.calls[0][1] != sampler.calls[1][1]  # other random numbers
    said = capsys.readouterr().out
    assert "2 of 5 problems have no hint that fits, and are left out\n" in said
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if "pass@" in line]
    assert rows == [
        ["pass@1", "0.250 [0.250, 0.250]", "1.000 [1.000, 1.000]", "+0.750 [+0.750, +0.750]"],
        ["pass@2", "0.500 [0.500, 0.500]", "1.000 [1.000, 1.000]", "+0.500 [+0.500, +0.500]"],
        ["pass@4", "1.000 [1.000, 1.000]", "1.000 [1.000, 1.000]", "+0.000 [+0.000, +0.000]"]]
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    left = {"p.png", "r_hinted.json", "r_plain.json", "rows.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == left
    main(Args(**hints, hinted=True))  # one way: the same problems and random numbers as of the two
    again = json.loads((tmp_path / "r.json").read_text())
    assert sampler.calls[2] == sampler.calls[1] and again == hinted


def test_a_stopped_effect_goes_on_with_what_is_left(hints, tmp_path, monkeypatch):
    first, second = Helped(stop_at=1), Helped()
    monkeypatch.setattr("evaluate.Sampler", lambda *_, **__: first)
    with pytest.raises(SystemExit):
        main(Args(**hints, hint_effect=True))
    assert sorted(path.name for path in tmp_path.glob("r*")) == [
        "r_hinted.json.unfinished", "r_plain.json.unfinished", "rows.jsonl"]
    monkeypatch.setattr("evaluate.Sampler", lambda *_, **__: second)
    main(Args(**hints, hint_effect=True))
    assert [of for of, _ in second.calls] == [[True] * 3]
    assert sorted(path.name for path in tmp_path.glob("r*")) == [
        "r_hinted.json", "r_plain.json", "rows.jsonl"]


def test_no_hint_at_all_is_one_line(hints, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.Sampler", lambda *_, **__: Helped())
    (tmp_path / "rows.jsonl").write_text('{"question": "?", "answer": "A", "domain": "choice", "meta": {}}\n')
    for way in ({"hinted": True}, {"hint_effect": True}):
        with pytest.raises(UserError, match=r"no problem of .*rows.jsonl has a hint that fits"):
            main(Args(**hints, **way))


# ---- an evaluation that is stopped -------------------------------------------------------------------------

class Fake:
    """A sampler and a verifier in one, whose samples depend on what the real ones' depend on."""

    def __init__(self, calls=math.inf):
        self.left, self.seeds = calls, []

    def generate(self, prompts, n, temperature, max_tokens, seed, top_p, top_k):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.seeds.append(seed)
        rng = random.Random(str((seed, prompts)))
        return [[Sample([0] * rng.randint(1, 9), [], True) for _ in range(n)] for _ in prompts]

    def score_groups(self, groups, problems):
        return [[RIGHT if len(sample.ids) < 3 else WRONG for sample in group] for group in groups]


def fake_evaluation(fake, path=None, **settings):
    prompts = [data.Prompt(data.Problem(f"é{i}", "", ""), [i], None) for i in range(7)]
    return evaluate(fake, fake, prompts, 2048, 1.0, 16, kept=path and Kept(path, settings))


@pytest.mark.parametrize("done, torn", [(0, 0), (1, 0), (2, 9), (4, 1)])  # of 4 chunks; bytes at the end
def test_a_stopped_evaluation_goes_on_where_it_was(done, torn, tmp_path):
    whole, fake = fake_evaluation(Fake()), Fake()
    file = tmp_path / "r.json.unfinished"
    if done < 4:
        with pytest.raises(KeyboardInterrupt):
            fake_evaluation(Fake(calls=done), file, n=2048)
    else:
        fake_evaluation(Fake(), file, n=2048)  # killed before the result was written
    assert len(file.read_text().splitlines()) == 1 + done
    with open(file, "ab") as end:
        end.truncate(end.tell() - torn)
    with pytest.raises(UserError, match="another n: give another --out, or remove it"):
        fake_evaluation(fake, file, n=1)
    assert json.dumps(fake_evaluation(fake, file, n=2048)) == json.dumps(whole)
    assert len(fake.seeds) == 4 - done + (torn > 0)  # nothing twice
    assert len(file.read_text().splitlines()) == 5


def test_what_is_evaluated_has_a_fingerprint(tmp_path, tokenizer):
    prompts, _ = data.encode(data.load("countdown", "test", limit=3), tokenizer, "countdown", 64)
    assert data.fingerprint(prompts) == data.fingerprint(list(prompts)) != data.fingerprint(prompts[:2])
    (tmp_path / "weights").write_text("1")
    before = files_of(str(tmp_path))
    (tmp_path / "weights").write_text("12")
    assert files_of(str(tmp_path)) != before and files_of("a/hub-id") == {}


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_evaluation_in_a_line_to_go_on(number, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--out", "my results.json"])
    before = signal.getsignal(number)
    with pytest.raises(SystemExit, match=str(code)), stoppable():
        signal.raise_signal(number)
    line = f"stopped by {number.name}, what is done is kept; go on with: {command_line(*sys.argv[1:])}"
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert signal.getsignal(number) is before


BOTH = {"compare": ("{tmp}/good.json", "{tmp}/good.json"), "model": "", "out": ""}


@pytest.mark.draws
@pytest.mark.parametrize("args, message", [
    ({"n": 0}, "--n 0: it has to be 1 or more"),
    ({"limit": -1}, "--limit -1: it has to be 0 or more"),
    ({"temperature": -1.0}, "--temperature -1.0: it has to be 0 or more"),
    ({"temperature": math.nan}, "--temperature nan"),
    ({"top_p": 0.0}, "--top-p 0.0: it has to be above 0 and at most 1"),
    ({"top_p": 1.5}, "--top-p 1.5: it has to be above 0 and at most 1"),
    ({"top_k": -1}, "--top-k -1: it has to be 0 or more"),
    ({"max_tokens": -1}, "--max-tokens -1: it has to be 0 or more"),
    ({"workers": 0}, "--workers 0: it has to be 1 or more"),
    ({"out": ""}, "--out is missing: the result file to write"),
    ({"model": "", "out": ""}, "give --model and --out to evaluate, or --compare BASE TRAINED"),
    ({"out": "{tmp}"}, "cannot be written: it is a folder"),
    ({"out": "{tmp}/file/r.json"}, "cannot be written: "),
    ({"plot": "p.png"}, "--plot draws a comparison: give it with --compare"),
    ({"compare": ("a", "b")}, "leave --model, --step and --out out"),
    ({**BOTH, "compare": ("a",)}, "--compare takes two result files or more"),
    ({**BOTH, "compare": ("{tmp}/none.json", "{tmp}/good.json")}, "no such file: "),
    ({**BOTH, "compare": ("{tmp}/good.json", "{tmp}/file")}, "is no result file of evaluate.py"),
    ({**BOTH, "compare": ("{tmp}/good.json", "{tmp}/other.json")}, "(KeyError: 'c')"),
    ({**BOTH, "plot": "{tmp}/file/p.png"}, "--plot {tmp}/file/p.png cannot be written: "),
    ({**BOTH, "plot": "{tmp}/p.xyz"}, "{tmp}/p.xyz: Format 'xyz' is not supported"),
    ({**BOTH, "step": 1}, "--compare reads result files: leave --model, --step and --out out"),
    ({**BOTH, "hint_effect": True}, "--hint-effect samples without and with the hint: leave --hinted and"),
    ({"hinted": True, "hint_effect": True}, "leave --hinted and --compare out"),
    ({"step": -1}, "--step -1: it has to be 0 or more"),
    ({"step": 3}, "--step 3: --model assets/countdown is not the folder of a training run (no args.json)"),
    ({"step": 3, "model": "a/hub-id"}, "--step 3: --model a/hub-id is not the folder of a training run"),
    ({"step": 3, "model": "{tmp}/empty"}, "--step 3: {tmp}/empty has no checkpoint of that step; there are:"),
    ({"model": "{tmp}/empty"}, "{tmp}/empty has neither final/ nor a checkpoint yet: --step 0 is the model"),
    ({"data": ""}, "give --data: assets/countdown held no problems out"),
])
def test_a_users_mistake_is_told_before_anything_is_loaded(args, message, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no JSON")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/args.json").write_text('{"model": "assets/countdown"}')
    (tmp_path / "good.json").write_text('{"problems": [{"id": "0", "n": 4, "c": 1}]}')
    (tmp_path / "other.json").write_text('{"problems": [{"id": "0", "n": 4}]}')
    for key, value in args.items():
        if isinstance(value, tuple):
            args = {**args, key: tuple(name.format(tmp=tmp_path) for name in value)}
        elif isinstance(value, str):
            args = {**args, key: value.format(tmp=tmp_path)}
    monkeypatch.setattr(data, "load", None)
    with pytest.raises(UserError) as error:
        main(Args(**{"model": MODEL, "out": f"{tmp_path}/r.json", **args}))
    assert message.format(tmp=tmp_path) in str(error.value)
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("errors, timeouts, said", [(1, 1, "failed on 2 of 100 responses"), (1, 0, "")])
def test_a_report_says_how_often_the_verifier_failed(errors, timeouts, said, tmp_path):
    verdicts = {"right": 40, "wrong": 60 - errors - timeouts, "no_answer": 0}
    verdicts |= {"timeout": timeouts, "error": errors}
    line = {"step": 1, "rollout/reward": 0.4, **{f"verify/{why}": n for why, n in verdicts.items()}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    text = report(tmp_path)
    assert said in text and ("warning" in text) == bool(said) and "done: " in text


@pytest.mark.parametrize("counts, args, said", [
    ((0, 0), {"data": "sea"}, "2 problems, 1 with a hint; 3 held-out problems of sea"),
    ((4, 0), {"data": "sea"},
     "2 problems, 1 with a hint; 4 too long and left out (--max-prompt, --max-response); "
     "3 held-out problems of sea"),
    ((0, 5), {"data": "own.jsonl", "model": "m", "eval_data": "aime.csv"},
     "2 problems, 1 with a hint; 5 hints too long and left out; 3 held-out problems of aime.csv"),
    ((0, 0), {"data": "own.jsonl"},
     "2 problems, 1 with a hint; none held out, so pass@k is not measured: name some with --eval-data; "
     "without --model the one of Countdown stands in (--template countdown)"),
])
def test_a_run_begins_with_what_it_has(counts, args, said):
    args = grpo.Args(**args)
    name = args.eval_data or args.data.removesuffix("own.jsonl")
    held_out = SimpleNamespace(args=args, name=name, prompts=[None] * 3)
    prompts = [data.Prompt(None, [1], None), data.Prompt(None, [1], [1, 2])]
    assert start_line(prompts, dict(zip(("too_long", "hints_too_long"), counts)), held_out) == said


@pytest.mark.parametrize("too_long, said", [(0, "python -m machinery.hints makes"), (2, "all are too long")])
def test_guidance_without_a_hint_does_not_begin(too_long, said):
    held_out = SimpleNamespace(args=guide_grpo.Args(data="own.jsonl", model="m"), name="", prompts=[])
    prompts = [data.Prompt(None, [1], None)] * 2
    with pytest.raises(UserError, match=f"no problem has a hint to guide with: {said}"):
        start_line(prompts, {"too_long": 0, "hints_too_long": too_long}, held_out)


@pytest.mark.slow
def test_command_line(tmp_path):
    def run(*args):
        done = start("evaluate.py", *args, out=tmp_path / "out", err=tmp_path / "err")
        done.join()
        return done.exitcode, (tmp_path / "out").read_text(), (tmp_path / "err").read_text()

    code, out, err = run("--model", MODEL, "--data", "countdown", "--limit", 16, "--n", 8, "--temperature", 1,
                         "--top-p", 1, "--hint-effect", "--out", tmp_path / "r.json",
                         "--plot", tmp_path / "r.png")
    assert code == 0 and "hinted - plain, paired" in out, err
    left = ["err", "out", "r.png", "r_hinted.json", "r_plain.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    plain, hinted = (json.loads((tmp_path / f"r_{name}.json").read_text()) for name in ("plain", "hinted"))
    assert plain["sampling"]["n"] == 8 and plain["template"] == "countdown" and "torch" in plain["versions"]
    assert sum(r["c"] for r in hinted["problems"]) > sum(r["c"] for r in plain["problems"])  # Guide's claim 2
    both = tmp_path / "r_plain.json", tmp_path / "r_hinted.json"
    code, out, _ = run("--compare", *both, "--plot", tmp_path / "out.png")
    assert code == 0 and "self-distillation" in out and (tmp_path / "out.png").exists()
    assert "different hinted, False and True" in out and "share their luck" not in out
    code, _, err = run("--compare", tmp_path / "r_plain.json", tmp_path / "nothing.json")
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1
