"""The command `ggufreap`, also as `python -m ggufreap`: the command line, its dangerous verbs under supervision."""

import sys

from ggufreap.interrupts import as_ctrl_c, unwrapped


def main(program: str = "ggufreap") -> int:
    """Run the command line; `program` is what a supervised verb runs in its child."""
    with as_ctrl_c():
        try:
            with unwrapped():
                return _run(program)
        except KeyboardInterrupt:  # before a verb began, which answers for itself
            sys.stderr.write("ggufreap: interrupted; nothing was begun\n")
            return 130


def _run(program: str) -> int:
    # Only now: importing takes time, in which it may be stopped.
    from ggufreap import activity, cli
    from ggufreap.errors import OutputError
    from ggufreap.supervision import can_supervise, supervise

    if activity.adopt():
        return cli.main()
    options = cli.parse()
    if not cli.starts_engine(options) or not can_supervise():
        return cli.main()
    try:
        patient = options.verb != "bench"  # which is to measure what llama-bench does
        return supervise(sys.argv[1:], getattr(options, "offered", ()), program, patient)
    except (OSError, OutputError) as error:  # no child, or no temporary folder for it
        return cli.fail(str(error), 1)


if __name__ == "__main__":
    raise SystemExit(main())
