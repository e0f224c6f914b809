"""``python -m udpbench``."""

from udpbench.commands.run import run

if __name__ == "__main__":
    run()
