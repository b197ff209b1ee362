"""The command line. Results go to standard output, everything else to standard error.

Exit codes::

    0    done
    1    something you can mend: an unknown name, a budget out of reach, a folder that exists …; the message says how
    2    the command line itself is wrong
    3    the call was valid and nothing was removed
    130  interrupted; `secateur train` goes on from its last checkpoint when it is called again

Nothing heavy is imported before a command runs, so that help and completion answer at once.
"""

from .app import app as app
from .app import main as main

__all__ = ["app", "main"]
