from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fedlab
from fedlab.data.partition.skew import size_figures
from fedlab.report import write_report
from fedlab.report.tables import result_table
from fedlab.tracking import History
from tests.conftest import charts
from tests.report.pages import Page
from tests.report.run_folders import make_run as build


def report(path: Path) -> Any:
    return Page(write_report(path))


QUICK = {"logs": False, "pictures": False, "metrics": ("accuracy",)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page of a run where nothing is out of the ordinary."""
    with charts(drawn=True):
        return report(build(tmp_path_factory.mktemp("runs") / "run", warnings=("lambda is large",)))


# content


def test_the_page_says_what_was_run_and_what_came_out(plain: Any) -> None:
    assert "FedLGD | on digits, seed 7 | Completed | Huang et al. 2023" in plain.text("")
    headline = plain.text("Headline figures")
    assert "Mean accuracy | 22.0 % | over clients, after round 4" in headline
    assert "Pooled accuracy | 22.1 %" in headline
    assert "Best mean accuracy | 22.0 % | round 4" in headline
    assert "Sent to clients | 4.00 MB" in headline
    assert "Sent to server | 2.00 MB" in headline
    assert "Wall time | 1 min 15 s" in headline
    assert "Partition | dirichlet (clients 3, alpha 0.5) | Seed | 7 | Rounds | 4 of 4" in plain.text("What was run")
    assert "lambda is large" in plain.text("warnings")


def test_the_results_hold_every_client_the_mean_and_the_pooled_values(plain: Any) -> None:
    results = plain.text("results")
    assert "Client | Accuracy | Balanced accuracy | F1 (macro) | Loss | Test samples" in results
    assert "svhn | 22.0 % | 22.0 % | 0.220 | 1.600 | 50" in results
    assert "Unweighted mean | 22.0 % | 22.0 % | 0.220 | 1.600 | –" in results
    assert "Pooled | 22.1 % | 22.1 % | 0.221 | 1.600 | 150" in results


def test_the_figures_stand_beside_their_number_of_samples(make_run: Callable[..., Path]) -> None:
    path = make_run(held={"mAP": 0.5}, **QUICK)
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    samples = {"mnist": 1000, "svhn": 200, "synth": 34}
    more = {"samples": samples, "unseen_clients": ["svhn"], "unseen": {"accuracy": 0.5}, "unit": "queries"}
    told = [{**e, **more, "server_samples": {"query": 60}} if e["event"] == "evaluation" else e for e in events]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told))
    page = report(path)
    headline, results = page.text("Headline figures"), page.text("results")
    assert "Mean accuracy | 22.0 % | over 2 clients, 1,034 queries, after round 4" in headline
    assert "Unseen accuracy | 50.0 % | mean over 1 client that never trains, 200 queries" in headline
    assert "over all 1,034 queries" in headline
    assert "chosen on test data, 1,034 queries" in headline
    assert "Client | Accuracy | Queries" in results
    assert "svhn (unseen) | 22.0 % | 200" in results
    assert "Unweighted mean | 22.0 % | 1,034" in results
    assert "Mean of unseen | 50.0 % | 200" in results
    assert "every query has equal weight" in results
    assert "Measured on query 60 samples." in results


def test_domains_are_shown_where_they_say_more_than_names(plain: Any, make_run: Callable[..., Path]) -> None:
    assert "Client | Domain" not in plain.text("results")
    page = report(make_run(domains=("art", "photo", "art"), **QUICK))
    assert "svhn | photo | 22.0 %" in page.text("results")


def test_bytes_are_told_by_group_round_and_client(plain: Any) -> None:
    communication = plain.text("communication")
    assert (
        "Group | Down (MB) | Up (MB) | Down per round (MB) | Up per round (MB) | Down per client (kB)" in communication
    )
    assert "model | 4.00 | 2.00 | 1.00 | 0.500 | 333 | 167" in communication
    assert "query before round 1 | 0.00 | 0.00125 | – | – | – | –" in communication
    assert "Total | 4.00 | 2.00 | 1.00 | 0.500 | 333 | 167" in communication


def test_seconds_add_up_to_the_whole_run(plain: Any) -> None:
    time = plain.text("time")
    assert "Phase | Time (s) | Share (%)" in time
    assert "Train | 8.00 | 10.7" in time
    assert "Other (start, pictures, files) | 63.5 | 84.7" in time  # 75 − 0.5 − 4 · 2.75 s
    assert "Whole run | 75.0 | 100.0" in time


def test_every_curve_has_its_axes_named(plain: Any) -> None:
    drawn = plain.sections["curves"]
    titles = ["Test accuracy", "Test loss", "Training: ce", "Training: dm", "Server: gm"]
    assert [title for title in drawn if title in titles] == titles
    assert drawn.count("round") == 5
    for label in ("test accuracy (%)", "ce (as logged)", "dm_first", "gm_last", "mean", "synth"):
        assert label in drawn


def test_pictures_are_grouped_by_name_in_order_of_rounds(plain: Any) -> None:
    moments = "Before round 1 | After round 1 | After round 4, the last"
    assert f"Virtual global | One column per class. | {moments}" in plain.text("pictures")
    assert f"Virtual local | One column per class. | {moments}" in plain.text("pictures")
    assert [image["alt"] for image in plain.all("img")][:2] == [
        "Global virtual images, round 0",
        "Global virtual images, round 1",
    ]


def test_the_run_can_be_repeated_from_the_page(plain: Any) -> None:
    repeat = plain.text("repeat")
    assert "fedlab run fedlgd --set federation.rounds=4" in repeat
    assert "fedlab run config.yaml" in repeat
    assert "torch | 2.13.0" in repeat
    assert "mlflow" not in repeat
    assert "OMP_NUM_THREADS=1" in repeat
    assert "partition: [{name: dirichlet, clients: 3, alpha: 0.5}]" in repeat


def test_a_named_run_is_repeated_under_another_name(make_run: Callable[..., Path]) -> None:
    path = make_run(**QUICK)
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("name: null", "name: mine"))
    assert "fedlab run config.yaml --set tracking.name=null" in report(path).text("repeat")


def test_metrics_of_other_tasks_take_the_place_of_accuracy(make_run: Callable[..., Path]) -> None:
    page = report(make_run(metrics=("rmse", "PSNR")))
    assert "Mean PSNR | 0.220" in page.text("Headline figures")
    assert "Client | PSNR | RMSE | Test samples" in page.text("results")
    assert "%" not in page.text("results")
    assert "ccuracy" not in page.text("curves")


def test_what_the_server_measures_on_its_own_data_is_shown(make_run: Callable[..., Path]) -> None:
    path = make_run(held={"probe_accuracy": 0.452, "knn_accuracy": 0.381, "collapse_alarm": 0.0})
    page = report(path)
    assert "Value (%) | Knn accuracy | 38.1 | Probe accuracy | 45.2" in page.text("results")
    assert "Collapse alarm | 0.000" in page.text("results")
    assert "Server’s data: accuracies" in page.text("curves")
    shown = io.StringIO()
    Console(file=shown, width=200).print(result_table(History.from_jsonl(path / "events.jsonl")))
    assert "server   knn accuracy 38.1 %, probe accuracy 45.2 %, collapse alarm 0.000" in shown.getvalue()


def test_a_terminal_shows_the_metrics_it_has_room_for(make_run: Callable[..., Path]) -> None:
    path = make_run(metrics=("accuracy", *(f"accuracy_kind_{k}" for k in range(7))))
    shown = io.StringIO()
    Console(file=shown, width=100).print(result_table(History.from_jsonl(path / "events.jsonl")))
    assert "5 of 8 metrics; see the report for all" in shown.getvalue()
    header = re.sub(r"[^\w ]", " ", shown.getvalue().split("client")[1].split("mnist")[0])
    assert "3" in header.split()
    assert "4" not in header.split()
    assert "…" not in shown.getvalue()
    assert "Accuracy kind 6" in report(path).text("results")


def test_rounds_a_resumed_run_repeats_count_once(make_run: Callable[..., Path]) -> None:
    path = make_run(**QUICK)
    events = path / "events.jsonl"
    last = [json.loads(line) for line in events.read_text().splitlines() if '"round": 4,' in line]
    with events.open("a") as file:
        for event in last:
            if event["event"] == "evaluation":
                event["mean"]["accuracy"] = 0.9
            file.write(json.dumps(event) + "\n")
    page = report(path)
    assert "Mean accuracy | 90.0 %" in page.text("Headline figures")
    assert "Sent to clients | 4.00 MB" in page.text("Headline figures")
    assert "4 of 4" in page.text("What was run")


@pytest.mark.usefixtures("drawn_charts")
def test_many_clients_are_summed_up_and_folded(make_run: Callable[..., Path]) -> None:
    path = make_run(clients=[f"client-{i:03}" for i in range(57)], domains=["art", "photo", "art"] * 19)
    page = report(path)
    results = page.text("results")
    assert "All 57 clients" in results
    assert "Lowest | 12.0 %" in results
    assert "Median | 42.0 %" in results
    assert "Highest | 72.0 %" in results
    assert "client-056 | art" in results
    assert "median" in page.sections["curves"]
    assert "client-056" not in page.sections["curves"]


# partitions of which less is known


def test_a_partition_without_counts_by_class_is_shown_without_label_skew(make_run: Callable[..., Path]) -> None:
    """Nodes with data of their own state how many samples they have, and not of which classes."""
    path = make_run(rounds=2, **QUICK)
    told = json.loads((path / "partition.json").read_text())
    for client in told["clients"]:
        client["train"], client["test"] = [sum(client["train"])], [sum(client["test"])]
    sizes = [client["train"][0] for client in told["clients"]]
    stated = {**told, "classes": ["all classes"], "domains": [], "skew": size_figures(sizes)}
    (path / "partition.json").write_text(json.dumps(stated))
    section = report(path).text("partition")
    assert "Training samples by client" in section
    assert f"Training samples | {sum(sizes):,}" in section
    assert "Gini index" in section
    assert "entropy, mean" not in section


# how a run ended


def test_a_failed_run_shows_its_error_first(make_run: Callable[..., Path]) -> None:
    page = report(make_run(rounds=2, end="failed", error="ClientError: client 3\nTraceback: x < y"))
    assert "The run failed after round 2 of 4 | ClientError: client 3\nTraceback: x < y" in page.text("Error")
    assert page.html.index("Traceback") < page.html.index("Headline figures")


def test_a_run_that_failed_before_round_one_says_so(make_run: Callable[..., Path]) -> None:
    page = report(make_run(rounds=0, end="failed", error="NameError: x", pictures=False))
    assert "before its first round was over" in page.text("Error")
    assert not {"results", "curves", "pictures", "communication"} & set(page.sections)
    assert "partition" in page.sections


def test_a_run_without_an_end_is_said_to_be_going_on_or_killed(make_run: Callable[..., Path]) -> None:
    text = report(make_run(rounds=2, end=None, **QUICK)).text("")
    assert "No end recorded" in text
    assert "still running, or it was killed" in text
    assert "2 of 4 rounds done" in text


def test_an_interrupted_run_says_so(make_run: Callable[..., Path]) -> None:
    assert "interrupted after round 3 of 4" in report(make_run(rounds=3, end="interrupted", **QUICK)).text("")


def test_a_run_started_again_is_no_longer_failed(make_run: Callable[..., Path]) -> None:
    path = make_run(rounds=2, end="failed", error="gone", **QUICK)
    events = path / "events.jsonl"
    first = events.read_text().splitlines()[0]
    events.write_text(events.read_text() + first + "\n")
    page = report(path)
    assert "No end recorded" in page.text("")
    assert "gone" not in page.html


# the page itself


def test_the_page_needs_nothing_from_outside(plain: Any) -> None:
    for _, attributes in plain.tags:
        assert str(attributes.get("src") or "data:").startswith("data:image/png;base64,") or "src" not in attributes
        for name in ("href", "xlink:href"):
            assert str(attributes.get(name) or "#").startswith("#")
    assert not plain.all("script")
    assert not plain.all("link")
    assert len(plain.all("style")) == 1
    assert not re.search(r"@import|url\((?!#)", plain.html)
    policy = [meta["content"] for meta in plain.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


@pytest.mark.usefixtures("drawn_charts")
def test_names_from_outside_stay_text(make_run: Callable[..., Path]) -> None:
    evil = "<script>alert(1)</script>"
    page = report(
        make_run(
            clients=(evil, '"><img src=x onerror=alert(1)>', "--><b>x</b>"),
            domains=("<i>d</i>", "</table>", evil),
            classes=("</style><script>1</script>", "_under", "$x^$"),
            title="</title><script>2</script>",
            caption="<iframe>",
            command="</code><script>3</script>",
            metrics=("<script>4</script>", "$\\frac{$"),
            warnings=("<script>5</script>",),
            end="failed",
            error="</pre><script>6</script>",
        )
    )
    assert not {"script", "iframe", "b", "i"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(str(image["src"]).startswith("data:") for image in page.all("img"))
    assert evil in page.sections["results"]
    assert "<script>5</script>" in page.sections["warnings"]
    assert "_under" in page.sections["partition"]
    assert "$x^$" in page.sections["partition"]
    assert "test $\\frac{$" in page.sections["curves"]


def test_ids_are_unique_and_all_links_lead_somewhere(plain: Any) -> None:
    ids = [attributes["id"] for _, attributes in plain.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes.get("href") or attributes.get("xlink:href") for _, attributes in plain.tags]
    targets += [f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", plain.html)]
    assert {str(target)[1:] for target in targets if target} <= set(ids)


def test_all_that_is_seen_can_be_read_out(plain: Any) -> None:
    assert plain.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in plain.all("img"))
    charts = plain.all("svg")
    assert len(charts) == 9
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert len(plain.all("h1")) == 1
    assert len(plain.all("caption")) == len(plain.all("table"))
    scrolling = [box for box in plain.all("div") if box.get("class") == "scroll"]
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in scrolling)


def test_the_same_folder_gives_the_same_bytes(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    path = make_run()
    first = write_report(path).read_bytes()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 31)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert write_report(path).read_bytes() == first
    assert matplotlib.rcParams["font.size"] == 31, "the user's own settings are as before"


def test_a_large_run_makes_a_small_page(make_run: Callable[..., Path]) -> None:
    clients = [f"c{i:04}" for i in range(1000)]
    path = make_run(clients=clients, rounds=60, planned=60, pictures=False)
    assert write_report(path).stat().st_size < 700_000


def test_a_real_run_tells_the_figures_of_its_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlab.report.page.write_report", write_report)
    tiny = [
        "method.warmup_steps=1",
        "method.dm_steps=1",
        "method.gm_steps=2",
        "method.ipc_local=1",
        "method.ipc_global=1",
        "method.real_batch=4",
        "method.spacing=1",
        "method.updates=1",
        "model.width=4",
        "federation.rounds=2",
        "evaluation.every=1",
        "engine.name=inline",
        "tracking.console=quiet",
        "tracking.tensorboard=false",
        f"tracking.folder={tmp_path}",
        f"tracking.cache={tmp_path / 'cache'}",
    ]
    run = fedlab.run("fedlgd", overrides=tiny, command="fedlab run fedlgd")
    page = Page(run.folder.report)
    assert "FedLGD" in page.text("")
    assert f"Mean accuracy | {100 * run.metrics['mean']['accuracy']:.1f} %" in page.text("Headline figures")
    for name, values in run.metrics["clients"].items():
        assert f"{name} | {100 * values['accuracy']:.1f} %" in page.text("results")
    assert "Server: gm" in page.sections["curves"]
    assert page.text("pictures").count("After round 2, the last") == 2
    assert len(page.all("img")) == 6
    assert run.folder.report.stat().st_size < 2_000_000
