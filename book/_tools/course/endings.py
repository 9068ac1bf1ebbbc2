"""How a cell can end without an answer: names of errors in the notebooks that nbgrader ran."""

TOO_LONG = "TooLong"
NOT_RUN = "NotRun"
DIED = "KernelDied"
