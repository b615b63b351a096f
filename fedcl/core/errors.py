"""Every error that fedcl raises on purpose; a message states the fact, the place and the remedy.

FedclError
├── ConfigError     the config, a file or a combination of options cannot work
├── ExposureError   a method asks to see more than the experiment allows
├── ResumeError     a run's folder or checkpoint does not fit this run
├── AbsentError     a client has nothing to take part with, for now
└── ClientError     a client's program failed; carries client, stage, round and program
"""


class FedclError(Exception):
    """The root of all errors that fedcl raises on purpose."""


class ConfigError(FedclError):
    """A config, a data file or a combination of options cannot work."""


class ExposureError(FedclError):
    """A method asks to see more of the clients than the channel lets through."""


class ResumeError(FedclError):
    """A run's folder or its checkpoint does not belong to this run."""


class AbsentError(FedclError):
    """A client has no data to take part with: its reply is missing, and nothing is wrong."""


class ClientError(FedclError):
    """A client's program failed; the original exception is the `__cause__`.

    Attributes:
        client: Id of the client.
        stage: Stage of the stream, counted from 0.
        round: Round of the stage, counted from 0.
        program: Name of the program that failed.
    """

    def __init__(self, client: int, stage: int, round: int, program: str, reason: str) -> None:
        super().__init__(
            f"program {program!r} of client {client} failed in stage {stage}, round {round}: "
            f"{reason}"
        )
        self.client, self.stage, self.round, self.program = client, stage, round, program
        self.reason = reason

    def __reduce__(self) -> tuple[type["ClientError"], tuple[int, int, int, str, str]]:
        return ClientError, (self.client, self.stage, self.round, self.program, self.reason)
