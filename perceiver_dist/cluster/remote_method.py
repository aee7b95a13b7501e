"""The type of a method of a Ray actor, so that mypy checks the calls. Ray itself types a handle's methods as Any."""

from typing import ParamSpec, Protocol, TypeVar

from ray import ObjectRef

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class RemoteMethod(Protocol[Arguments, Result]):
    """A method of an actor as its handle offers it."""

    def remote(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> ObjectRef[Result]:
        """Send the call and return at once.

        Args:
            *args: The method's arguments.
            **kwargs: The method's arguments.

        Returns:
            The answer to come, for `ray.get`.
        """
