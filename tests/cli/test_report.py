"""Several runs on one page."""

from tests.command import clearhead


def test_a_page_of_several_runs_names_the_run_of_each_finding(workspace):
    for limit in (8, 10):
        run = clearhead("battery", "model", "data", "--limit", limit, "--out", f"battery-{limit}", cwd=workspace)
        assert run.returncode == 0, run.stderr
    run = clearhead("report", "battery-8", "battery-10", "--out", "both.html", cwd=workspace)
    assert run.returncode == 0, run.stderr
    page, alone = (workspace / "both.html").read_text(), (workspace / "battery-8" / "report.html").read_text()
    label = '<span class="data">model: shortcut battery</span>'
    assert page.count(label) == 2
    assert label not in alone
