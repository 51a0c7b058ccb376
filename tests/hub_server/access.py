"""Who may do what.

Each refusal has the status, code and message that make the client raise the same class here, over plain http, as it
raises for the real Hub: the client infers a missing repository from a bare 401 only for https.
"""

from __future__ import annotations

from .state import Account, Repo, State
from .web import Refusal, Request


def account_of(state: State, request: Request) -> Account | None:
    """The account behind the request's token; None without one.

    Raises:
        Refusal: 401, the token is unknown, revoked or expired: the Hub tells them apart no more than this does.
    """
    if request.token is None:
        return None
    if request.token not in state.tokens:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return state.tokens[request.token]


def signed_in(state: State, request: Request) -> Account:
    """As `account_of`, for what nobody may do without a token.

    Raises:
        Refusal: 401.
    """
    account = account_of(state, request)
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    return account


def readable(state: State, request: Request, repo: str) -> Repo:
    """A repository whose page the request may see: a gated one's too, as on the Hub, but not its files.

    Raises:
        Refusal: There is none, or it is private to others, which must look alike: 404, without a token 401.
    """
    account = account_of(state, request)
    found = state.repos.get(repo)
    if found is None or (found.private and not owns(account, found)):
        raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
    return found


def downloadable(state: State, request: Request, repo: str) -> Repo:
    """A repository whose files the request may read.

    Raises:
        Refusal: As `readable`; or it is gated, and the account has not been let in: 403, without a token 401.
    """
    found = readable(state, request, repo)
    account = account_of(state, request)
    if found.gated and not owns(account, found) and (account is None or account.name not in found.granted):
        message = f"Access to model {repo} is restricted and you are not in the authorized list."
        raise Refusal(403 if account else 401, message, "GatedRepo")
    return found


def writable(state: State, request: Request, repo: str) -> Repo:
    """A repository that the request may change.

    Raises:
        Refusal: As `readable`; 401 without a token; 403 for a token that may only read, or another's repository.
    """
    found = readable(state, request, repo)
    account = account_of(state, request)
    if account is None:
        raise Refusal(401, "Invalid username or password.", "RepoNotFound")
    may_write(account, found.namespace)
    return found


def may_write(account: Account, namespace: str) -> None:
    """Checks the token's role and the account's rights.

    Raises:
        Refusal: 403.
    """
    if not account.can_write:
        raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
    if namespace not in account.namespaces:
        raise Refusal(403, f'You don\'t have the rights to write under the namespace "{namespace}"')


def owns(account: Account | None, repo: Repo) -> bool:
    """Whether the repository is the account's own or of one of its organisations."""
    return account is not None and repo.namespace in account.namespaces
