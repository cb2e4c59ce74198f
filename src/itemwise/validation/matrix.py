"""One table for several models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itemwise.errors import ItemwiseError, ResultsError
from itemwise.machine import environment
from itemwise.progress import ProgressFn, silent
from itemwise.validation.files import Json, read_json, write_json, write_text
from itemwise.validation.markdown import markdown_table, markdown_text
from itemwise.validation.validate import RESULT_FILE, Settings, settings_json, slug, validate

SPEED_COUNTS = ("8", "32", "128")
COLUMNS: tuple[tuple[str, str], ...] = (
    ("model", "Model"),
    ("same_length_max", "Same-length isolation max"),
    ("changed_length_max", "Changed-length isolation max"),
    ("delimiter_aligned_max", "Delimiter-aligned max"),
    ("jax_serial_vs_torch_serial", "JAX serial vs torch serial"),
    ("multi_vs_torch_multi_semantic", "Multi vs torch multi-semantic"),
    ("speedup_8", "Speed-up N=8"),
    ("speedup_32", "N=32"),
    ("speedup_128", "N=128"),
    ("speedup_32_torch", "N=32 vs transformers serial"),
    ("verdict", "Five checks"),
)


def run_matrix(
    models: Sequence[str],
    settings: Settings,
    *,
    folder: Path,
    fresh: bool = False,
    api_key: str | None = None,
    on_progress: ProgressFn = silent,
) -> Json:
    """Validates models one by one and returns `matrix.json`; continues after a failing one.

    A model whose folder has a complete result with the same settings is not run again.

    Args:
        models: folders or Hub ids.
        settings: of each validation.
        folder: for `matrix.json`, `matrix.md` and a folder per model.
        fresh: run all models again.
        api_key: that the servers require.
        on_progress: called during long work.

    Raises:
        ResultsError: the folder cannot be written, or two models have the same name.
    """
    names = [slug(model) for model in models]
    if len(set(names)) < len(names):
        raise ResultsError(f"two models have the same name: {', '.join(names)}; rename a folder")
    matrix: Json = {"complete": False, "environment": environment(), "rows": []}
    for done, (model, name) in enumerate(zip(models, names, strict=True)):
        on_progress("models", done, len(models))
        row = _row_of(model, settings, folder / name, fresh, api_key, on_progress)
        matrix["rows"].append(row)
        _write(folder, matrix)
    matrix["complete"] = True
    matrix["all_pass"] = all(row.get("all_pass") for row in matrix["rows"])
    _write(folder, matrix)
    on_progress("models", len(models), len(models))
    return matrix


def _row_of(
    model: str,
    settings: Settings,
    folder: Path,
    fresh: bool,
    api_key: str | None,
    on_progress: ProgressFn,
) -> Json:
    kept = None if fresh else _finished(folder, settings)
    try:
        result = kept or validate(
            model, settings, folder=folder, api_key=api_key, on_progress=on_progress
        )
        return row(result, folder)
    except Exception as error:  # whatever happened to one model, the others get their turn
        text = (
            str(error) if isinstance(error, ItemwiseError) else f"{type(error).__name__}: {error}"
        )
        return {"model": slug(model), "error": text, "all_pass": False}


def _finished(folder: Path, settings: Settings) -> Json | None:
    """The complete result in a folder, if it has these settings."""
    try:
        result = read_json(folder / RESULT_FILE)
    except ResultsError:
        return None
    same = result.get("settings") == settings_json(settings)
    return result if same and result.get("complete") else None


def row(result: Json, folder: Path) -> Json:
    """The row of a model, from the files of its validation.

    Raises:
        ResultsError: a file cannot be read.
    """
    both = read_json(folder / result["files"]["multi_vs_serial"])
    parity = read_json(folder / result["files"]["parity"])
    speeds = both["performance"]
    torch = parity["torch_performance"].get("32", {})
    found: Json = {
        "model": result["name"],
        "same_length_max": both["isolation"]["same_length_mutation_max_abs_diff"],
        "changed_length_max": both["isolation"]["changed_length_mutation_max_abs_diff"],
        "delimiter_aligned_max": both["equivalence_query_plus_delimiter"]["max_abs_diff"],
        "jax_serial_vs_torch_serial": parity["max_abs_diff_jax_serial_vs_torch_serial"],
        "multi_vs_torch_multi_semantic": parity["max_abs_diff_jax_multi_vs_torch_multi_semantic"],
    }
    for count in SPEED_COUNTS:
        found[f"speedup_{count}"] = speeds.get(count, {}).get("speedup_vs_serial_p50")
    found["speedup_32_torch"] = torch.get("speedup_vs_torch_serial_p50")
    passed = sum(check["pass"] for check in result["checks"].values())
    found |= {
        "verdict": f"{passed} of {len(result['checks'])} pass",
        "all_pass": result["all_pass"],
        "server_dtype": parity["server_dtype"],
        "workload": result["workload"],
        "folder": folder.name,
        "environment": result["environment"],
    }
    return found


def cells(found: Json) -> list[str]:
    """A row's cells as text; those of a failed model have its error in the last one."""
    texts = [_cell(found.get(key), key) for key, _ in COLUMNS]
    if "error" in found:
        texts[-1] = f"failed: {found['error'].splitlines()[0][:160]}"
    return texts


def _cell(value: Any, key: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if key.startswith("speedup"):
        return f"{value:.2f}x"
    return "0.0" if value == 0 else f"{value:.2g}"


def markdown(matrix: Json) -> str:
    """The table with where and when it was measured."""
    where = matrix["environment"]
    machine = where["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    measured = (
        f"{where['date']}; {machine['cpu']}, {machine['cores']} cores; {versions}; "
        f"commit {where['git_commit'] or 'unknown'}."
    )
    lines = ["# Model matrix", "", markdown_text(measured), ""]
    lines += ["Differences are of probabilities. Speed-ups are p50 of one multi-item request "]
    lines[-1] += "over N one-item requests to Itemwise's own serial server."
    rows = [cells(found) for found in matrix["rows"]]
    return "\n".join([*lines, "", *markdown_table([title for _, title in COLUMNS], rows), ""])


def _write(folder: Path, matrix: Json) -> None:
    write_json(folder / "matrix.json", matrix)
    write_text(folder / "matrix.md", markdown(matrix))
