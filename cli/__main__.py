"""`python -m mmpo.cli` is `mmpo`, for launchers that start modules: `torchrun --nproc-per-node 2 -m mmpo.cli train ...`."""

from mmpo.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
