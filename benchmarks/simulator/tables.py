"""Reports as Markdown tables. Times are milliseconds."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.simulator.report import Report


def main_table(reports: Sequence[Report]) -> str:
    """One line per simulation."""
    heads = (
        "trace", "policy", "requests", "refused", "expired", "out tok/s", "TTFT mean", "p50", "p99",
        "ITL p50", "p99", "stall p99", "hits", "preempted", "wasted", "busy", "TTFT error", "p90 ratio", "wall s",
    )  # fmt: skip
    return _table(heads, (_main_cells(report) for report in reports))


def groups_table(reports: Sequence[Report]) -> str:
    """One line per group of requests and simulation, and the tenants' shares where there are several."""
    lines = _table(
        ("trace", "policy", "group", "requests", "TTFT mean", "p50", "p99", "hits"),
        (
            (
                report.trace,
                report.policy,
                name,
                str(group.requests),
                _ms(group.ttft_s.mean),
                _ms(group.ttft_s.p50),
                _ms(group.ttft_s.p99),
                f"{group.hit_rate:.1%}",
            )
            for report in reports
            if len(report.groups) > 1
            for name, group in report.groups.items()
        ),
    )
    shares = _table(
        ("trace", "policy", "tenant", "service / weight", "Jain"),
        (
            (report.trace, report.policy, name, f"{service:,.0f}", f"{report.jain:.3f}")
            for report in reports
            if len(report.service) > 1
            for name, service in report.service.items()
        ),
    )
    return lines + shares


def comparison_table(figures: Mapping[str, float]) -> str:
    """Figures over several simulations."""
    return _table(("comparison", "value"), ((name, f"{value:.2f}") for name, value in figures.items()))


def _main_cells(report: Report) -> tuple[str, ...]:
    prediction = report.prediction
    return (
        report.trace,
        report.policy,
        f"{report.requests:,}",
        f"{report.refused:,}",
        f"{report.expired:,}",
        f"{report.output_tokens_per_s:,.0f}",
        _ms(report.ttft_s.mean),
        _ms(report.ttft_s.p50),
        _ms(report.ttft_s.p99),
        _ms(report.itl_s.p50),
        _ms(report.itl_s.p99),
        _ms(report.stall_s.p99),
        f"{report.hit_rate:.1%}",
        str(report.preemptions),
        f"{report.wasted:.1%}",
        f"{report.busy:.0%}",
        "–" if prediction is None else _ms(prediction.mean_error_s),
        "–" if prediction is None else f"{prediction.p90_ratio:.2f}",
        f"{report.wall_s:.1f}",
    )


def _ms(seconds: float) -> str:
    return "–" if seconds != seconds else f"{seconds * 1e3:,.1f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, or nothing if it has no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *lines, ""])
