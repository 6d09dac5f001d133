"""Tag proposed images in the terminal: one line per image; every answer is saved immediately."""

from dataclasses import replace

from clearhead.data.tags import TaggedFile, merge_tags, write_tags
from clearhead.runs import Run


def tag_in_terminal(run: Run) -> None:
    """Ask for a tag of each image without one, and write tags.csv in the run folder after each answer.

    Ends after the last image, at ``q``, at the end of the input or at Ctrl-C; the next call goes on there.
    """
    file, values, proposals = run.folder / "tags.csv", run.result.values, run.result.proposals
    rows = merge_tags(file, [TaggedFile(one.file, "", one.label) for one in proposals])
    answered: list[int] = []
    skipped: set[int] = set()
    keys = ", ".join(f"{number} {value}" for number, value in enumerate(values, 1))
    print(f"Answer {keys}; s skip, u undo, q quit.")
    while True:
        i = next((i for i in range(len(proposals)) if not rows[i].tag and i not in skipped), None)
        if i is None:
            break
        one = proposals[i]
        print(f"{i + 1}/{len(proposals)}  {one.path}  class {one.label}, predicted {one.predicted}")
        try:
            answer = input("> ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            print()
            break
        if answer == "q":
            break
        if answer == "s":
            skipped.add(i)
        elif answer == "u" and answered:
            last = answered.pop()
            rows[last] = replace(rows[last], tag="")
            write_tags(file, rows)
        elif answer.isdecimal() and 1 <= int(answer) <= len(values):
            rows[i] = replace(rows[i], tag=values[int(answer) - 1])
            answered.append(i)
            write_tags(file, rows)
        else:
            print(f"Answer {keys}; s skip, u undo, q quit.")
    tagged = sum(bool(row.tag) for row in rows[: len(proposals)])
    print(f"{tagged} of {len(proposals)} images are tagged: {file}")
