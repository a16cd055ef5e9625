"""The report of a run that goes on: how often it is written, and what a failure does."""

from pathlib import Path

import pytest
from made_up import made_up

from evolora.runs.report import live
from evolora.runs.report.live import SHARE, LiveReport
from evolora.runs.report.page import Going, write_report


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("generation", "cost"), [(10.0, 0.1), (1.0, 0.03), (1.0, 0.5), (0.1, 0.05)])
def test_it_takes_less_than_its_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, generation: float, cost: float
) -> None:
    clock, written = Clock(), []

    def write(folder: Path, going: Going | None) -> None:
        written.append(going)
        clock.now += cost

    monkeypatch.setattr(live, "write_report", write)
    report = LiveReport(tmp_path, pytest.fail, clock=clock)
    report.update(0, 200)
    for number in range(1, 201):
        clock.now += generation
        report.update(number / 200, 200)
    assert (len(written) == 201) == (cost < SHARE * generation)
    # The last one may not have been paid for yet.
    assert report.seconds - cost <= SHARE * (clock.now - 100) and len(written) > 2
    assert written[2].left == pytest.approx((clock.now - 100) * (1 - written[2].done), rel=0.2)


def test_a_failure_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    run, said = made_up(tmp_path / "run", 2, 4), list[str]()
    (run / "report.html").mkdir()
    report = LiveReport(run, said.append)
    report.update(0, 2)
    report.end()
    (told,) = said
    assert told.startswith(f"{run / 'report.html'}: could not be written (") and "evolora report" in told


def test_the_page_of_a_run_that_goes_on_is_loaded_again_and_no_other(tmp_path: Path) -> None:
    run = made_up(tmp_path / "run", 3, 4)
    page = write_report(run, Going(done=0.5, gens=6, left=42.0, again=3.0, written=0.0)).read_text()
    assert "Running: 3 of 6 generations; validation 0.500 at best, the base model's is 0.250." in page
    assert "50% done, about 42 s left" in page and 'http-equiv="refresh"' in page
    for finished in (True, False):
        if not finished:
            (run / "summary.json").unlink()
        page = write_report(run).read_text()
        assert 'http-equiv="refresh"' not in page and "data-written" not in page
        assert ("The run is not finished" in page) == (not finished)
