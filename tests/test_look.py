"""machinery.look: what happened in a run, as text, as a table, as a page in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from machinery import look, page
from machinery.command import UserError
from machinery.logged import hint_part, read_steps, visible
from machinery.tasks import TASKS

HOSTILE = ("</script><script>alert(1)</script><img src=x onerror=alert(2)><!--\x1b[2J\x00\u202eabc\ud800 "
           "<b>&amp;\u2028 {{ 7 * 7 }}")


def write_run(folder: Path, steps: int = 2, texts=("4*9=36\n", "4+9=13\n"), **more) -> Path:
    """A run's files, made by hand: each step one group of plain and guided rows."""
    folder.mkdir(parents=True)
    args = {"script": "guide_grpo", "model": TASKS["sea"].model, "data": "sea", "steps": steps, "lr": 1e-4,
            "n": 2}
    (folder / "args.json").write_text(json.dumps({**args, **more}))
    metrics, lines = [], []
    for step in range(1, steps + 1):
        metrics.append({"step": step, "rollout/reward": step / steps, "train/grad_norm": float("nan")})
        for i, text in enumerate(texts):
            tokens = [text[0], text[1:]]
            lines.append({"step": step, "group": 0, "problem": f"p{step}", "prompt": "Use 3.\n",
                          "sampled_from": "Use 3. Hint: 1+2.\n", "guided": bool(i), "completion": text,
                          "answer": "36", "verdict": "right", "reward": float(i), "finished": True,
                          "advantage": i - 0.5, "n_tokens": 2, "tokens": tokens,
                          "engine_logp": [-0.1, -2.0], "old_logp": [-0.1, -2.0], "ratio": [1.0, 0.02],
                          "weight": [0.25, None]})
    for name, rows in (("metrics", metrics), ("rollouts", lines)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    for name, counts in (("base", (0, 2, 4)), ("trained", (3, 0, 4))):
        problems = [{"id": f"p{i}", "n": 4, "c": c} for i, c in enumerate(counts)]
        samples = [{"question": "Use 3.", "right": "1+2=3", "wrong": HOSTILE}]
        text = json.dumps({"problems": problems, "samples": samples})
        (folder / f"eval_{name}.json").write_text(text)
    return folder


def test_a_step_as_text(tmp_path):
    run = write_run(tmp_path / "run")
    said = look.step_text(run, 2, colours=False)
    assert "group 1: p2; plain 0 of 1 right, guided 1 of 1 right; answer 36" in said
    assert "prompt | Use 3.\n" in said and "hint   | Hint: 1+2.\n" in said
    assert "+ right, guided, advantage +0.5\n         | 4+9=13" in said
    assert "1 ratios below 0.5: '+9=13\\n' 0.02 (weight -)" in said
    assert "\x1b" not in said and "\x1b[32m+ right, guided" in look.step_text(run, 2, colours=True)
    with pytest.raises(UserError, match=r"--step 3: .* has no such step; there are: 1 to 2"):
        look.step_text(run, 3, colours=False)


def test_rollouts_of_earlier_versions_and_of_a_run_at_work(tmp_path):
    run = write_run(tmp_path / "run")
    old = [{"step": 1, "problem": p, "prompt": "A", "guided": False, "sampled_from": "A", "completion": "B",
            "answer": "C", "verdict": "wrong", "reward": 0.0, "advantage": 0.1} for p in "ppqq"]
    text = "".join(json.dumps(line) + "\n" for line in old)
    (run / "rollouts.jsonl").write_text(text + '{"step": 2, "pro')
    assert [len(group) for group in read_steps(run)[1]] == [2, 2] and list(read_steps(run)) == [1]
    assert "- wrong, advantage +0.1\n         | B" in look.step_text(run, 1, colours=False)
    (run / "rollouts.jsonl").write_text("{\n" + text)
    with pytest.raises(UserError, match=r"rollouts.jsonl, line 1, is damaged"):
        look.step_text(run, 1, colours=False)


def test_hostile_texts_stay_text(tmp_path):
    run = write_run(tmp_path / "run", texts=(HOSTILE, "x" * 1_000_000))
    said = look.step_text(run, 1, colours=False)
    said.encode()  # no half of a surrogate pair
    assert not {"\x1b", "\x00", "\u202e", "\u2028"} & set(said) and "\\x1b[2J\\x00\\u202eabc\\ud800" in said
    assert ".. and 980,000 characters" in said and len(said) < 30_000
    assert visible("a\u200db\tc\nd é 中") == "a\u200db\tc\nd é 中"
    assert hint_part("", "") == ["", "", ""] and hint_part("aa", "aaa") == ["aa", "a", ""]


def test_the_table_of_runs(tmp_path):
    write_run(tmp_path / "a", lr=3e-5)
    write_run(tmp_path / "more/b", steps=4, script="ppo", data="countdown")
    write_run(tmp_path / "c")
    (tmp_path / "c/metrics.jsonl").write_text("{}\n")
    said = look.runs_table(tmp_path).splitlines()
    assert len(said) == 5
    assert "| a " in said[2] and "| 2 of 2 " in said[2] and "0.750" in said[2] and "0.500 -> 0.583" in said[2]
    assert "--steps 2 --lr 3e-05" in said[2] and "--model" not in said[2]
    assert "metrics.jsonl, line 1, is damaged" in said[3]
    assert "| more/b " in said[4] and "| ppo " in said[4] and "--data countdown" in said[4]
    with pytest.raises(UserError, match="no training run, and there is none in it"):
        look.runs_table(tmp_path / "more/b/nothing")


# ---- the page ----------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What a person would do, at the end of the page; the title says how long it took to open.
CLICKS = """<script>
const opened = Math.round(performance.now());
for (const option of $("shade").options) { shade = option.value; paint(); }
for (const button of document.querySelectorAll("button[data-cell]")) button.click();
for (const token of document.querySelectorAll(".completion span")) token.onmouseenter({target: token});
$("on").click(); $("back").click(); document.querySelector("details").open = true;
document.querySelector("svg").onclick({clientX: 300});
document.title = `opened in ${opened} ms at step ${step}`;
</script>"""


def browse(path: Path) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what they have complained of."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command = [BROWSER, *options, f"--user-data-dir={path.parent}/profile", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


class Tags(HTMLParser):
    """The names of all elements, as a browser's own words say them."""

    def __init__(self, text: str):
        super().__init__()
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)


def test_the_page_holds_each_step_as_json_that_no_text_breaks_out_of(tmp_path):
    run = write_run(tmp_path / "run", texts=(HOSTILE, "x" * 100_000))
    out = page.write_page([run])
    assert out == run / "look.html"
    text = out.read_text()
    tags = Tags(text).names
    assert tags.count("script") == 1 + 2 + 1 and "img" not in tags and "alert(1)" in text
    assert not re.search(r"""(src|href)=["']?http""", text)  # works from a disk
    (group,) = json.loads(re.search(r'id="step-0-1">(.*)</script>', text)[1])
    assert group["hinted"] == ["Use 3.", " Hint: 1+2.", "\n"]
    first, second = group["rows"]
    assert "".join(first["tokens"]) + first["rest"] == visible(HOSTILE)
    assert second["left"] == 80_000 and second["weight"] == [0.25]
    data = json.loads(re.search(r'id="run-0">(.*)</script>', text)[1])
    assert data["curves"]["rollout/reward"] == [[0, 0.5], [1, 1.0]]  # 0 is the base
    assert data["curves"]["eval/pass@1"] == [[0, 0.5], [2, 0.5833]]
    assert "train/grad_norm" not in data["curves"] and data["metrics"]["1"]["train/grad_norm"] is None
    (problem,) = data["moved"]["never sometimes"]
    samples = {"question": "Use 3.", "right": "1+2=3", "wrong": visible(HOSTILE)}
    assert problem == {"id": "p0", "steps": [], "base": {"n": 4, "c": 0, **samples},
                       "trained": {"n": 4, "c": 3, **samples}}
    assert data["moved"]["sometimes never"] == [
        {"id": "p1", "steps": [1], "base": {"n": 4, "c": 2}, "trained": {"n": 4, "c": 0}}]


def test_a_page_of_two_runs_and_of_a_run_without_results(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b <i>")
    (b / "eval_trained.json").unlink()
    (b / "rollouts.jsonl").write_text("")
    out = page.write_page([a, b])
    text = out.read_text()
    assert out.name == "look-b__i_.html" and "b &lt;i&gt;" in text and "<i>" not in text
    assert 'id="step-0-1"' in text and 'id="step-1-1"' not in text and "Not known: it takes" in text
    (b / "eval_trained.json").write_text("{}")
    assert "is no result file" in page.page([b])


def test_a_page_has_room_for_every_step(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", steps=20, texts=("x" * 10_000, "y" * 10_000))
    monkeypatch.setattr(page, "MOST_BYTES", 100_000)
    text = page.page([run])
    assert len(text) < 150_000 and '"left": 9000' in text and 'id="step-0-20"' in text


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="needs chromium: apt-get install chromium")
def test_in_a_browser_500_steps_open_at_once_and_hostile_texts_stay_text(tmp_path):
    texts = ["4*9=36\n" * 40, HOSTILE, "\u05d0\u202e" * 50, "x" * 20_000] * 2
    run, other = write_run(tmp_path / "run", steps=500, texts=texts), write_run(tmp_path / "other")
    path = page.write_page([run, other])
    path.write_text(path.read_text().replace("</body>", f"{CLICKS}</body>"))
    document, complaints = browse(path)
    assert complaints == []
    opened, step = re.search(r"<title>opened in (\d+) ms at step (\d+)</title>", document).groups()
    assert int(opened) < 3000 and int(step) > 1
    tags = Tags(document).names
    assert tags.count("script") == 2 + 500 + 2 + 1 + 1 and "img" not in tags
    shown = document[document.index('id="step"') : document.index('id="tip"')]
    assert "alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(2)&gt;" in shown and "\\u202e" in shown
    assert len(re.findall('class="row( right)?"', shown)) == 8 and "Nothing is logged of this step" in shown
    assert tags.count("svg") == 2  # rewards, pass@1
