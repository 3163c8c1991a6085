"""`python -m mmpo.cli` is `mmpo`, for launchers that start modules: `torchrun --nproc-per-node 2 -m mmpo.cli train ...`."""

from mmpo.cli.entry import main

if __name__ == "__main__":
    main()
