"""The page where a person logs in and agrees to what an app may do, in Chinese and English, without script and without anything from
elsewhere (SMART App Launch 2.2, authorization code; what is checked stands in fhir_server.login)."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import psycopg
from fastapi import APIRouter, Request, Response

from fhir_server import login
from fhir_server.access import Principal
from fhir_server.accounts import Account, log_in
from fhir_server.api.authorization import PREFIX, fields_of
from fhir_server.api.interaction import in_thread
from fhir_server.api.security import address_of, services_of
from fhir_server.authorization import Refused
from fhir_server.errors import Category, Fault

router = APIRouter()

_STYLE: Final = (
    "body{font:16px/1.5 sans-serif;max-width:30rem;margin:2rem auto;padding:0 1rem}label{display:block;margin:.8rem 0}"
    "input{display:block;width:100%;box-sizing:border-box;font:inherit;padding:.4rem}button{font:inherit;padding:.5rem 1.2rem;"
    "margin-right:1rem}.fault{color:#a00}li{overflow-wrap:anywhere}"
)
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ASKED: Final = (
    "response_type", "client_id", "redirect_uri", "scope", "state", "aud", "code_challenge", "code_challenge_method", "nonce",
)  # fmt: skip


@router.get(f"{PREFIX}/authorize")
async def authorize(request: Request) -> Response:
    """The page for an authorization request; an error goes back to the app, or is shown when the app is not known."""
    return await _checked(request, dict(request.query_params), None)


@router.post(f"{PREFIX}/authorize")
async def agree(request: Request) -> Response:
    """Name, password, one-time password and the decision -> back to the app with a code, or the page again."""
    try:
        form = await fields_of(request)
    except Refused as refused:
        return Response(
            _page(f'<p class="fault">{escape(str(refused))}</p>'), 400, _HEADERS, "text/html; charset=utf-8"
        )
    return await _checked(request, form, form)


async def _checked(request: Request, asked: Mapping[str, str], form: Mapping[str, str] | None) -> Response:
    try:
        wanted = login.wish(request.app.state.apps, asked, request.app.state.base_url)
    except login.Unanswerable:
        text = "应用或回调地址未登记。The app or its address is not registered."
        return Response(_page(f'<p class="fault">{text}</p>'), 400, _HEADERS, "text/html; charset=utf-8")
    except Refused as refused:
        return _back(asked["redirect_uri"], {"error": refused.error, "error_description": refused.text}, asked)
    if form is None:
        return _shown(wanted, asked, "")
    if form.get("decision") != "allow":
        return _back(wanted.redirect_uri, {"error": "access_denied"}, asked)
    services = services_of(request)
    now = services.clock()

    def act() -> tuple[Account | None, str | Refused]:
        with services.writer.connection() as conn:
            found = log_in(conn, form.get("user", ""), form.get("password", ""), form.get("code", ""), now)
            if found is None:
                return None, ""
            scopes = login.grantable(wanted, found)
            try:
                return found, login.give_code(conn, wanted, found, scopes, form.get("patient", ""), now)
            except Refused as refused:
                return found, refused

    try:
        account, code = await in_thread(act)
    except (psycopg.OperationalError, OSError):
        raise Fault(Category.UNAVAILABLE, "Nobody can log in now. Try again later.") from None
    who = Principal(account.subject, account.role, account.facility, frozenset()) if account else None
    good = isinstance(code, str) and code != ""
    await services.audit.record(
        who, "E", "login", (), outcome="0" if good else "4", at=now, address=address_of(request)
    )
    if account is None:
        fault = "用户名、密码或动态口令不对,或账户已锁定。Name, password or one-time password is wrong, or the account is locked."
        return _shown(wanted, asked, fault)
    if isinstance(code, Refused):
        return _back(wanted.redirect_uri, {"error": code.error, "error_description": code.text}, asked)
    return _back(wanted.redirect_uri, {"code": code}, asked)


def _back(redirect: str, answer: Mapping[str, str], asked: Mapping[str, Any]) -> Response:
    told = {**answer, **({"state": asked["state"]} if asked.get("state") else {})}
    join = "&" if urlsplit(redirect).query else "?"
    return Response(status_code=303, headers={**_HEADERS, "Location": f"{redirect}{join}{urlencode(told)}"})


def _shown(wanted: login.Wish, asked: Mapping[str, str], fault: str) -> Response:
    hidden = "".join(f'<input type="hidden" name="{n}" value="{escape(asked.get(n, ""))}">' for n in _ASKED)
    scopes = "".join(f"<li><code>{escape(s)}</code></li>" for s in sorted(wanted.scopes))
    patient = (
        '<label>患者ID Patient id<input name="patient" required maxlength="64"></label>' if wanted.needs_patient else ""
    )
    body = (
        f"<h1>登录 Log in</h1><p><strong>{escape(wanted.app.name or wanted.app.id)}</strong> 请求权限 asks for:</p><ul>{scopes}</ul>"
        + (f'<p class="fault" role="alert">{fault}</p>' if fault else "")
        + f'<form method="post" action="authorize">{hidden}'
        '<label>用户名 Name<input name="user" autocomplete="username" required autofocus maxlength="100"></label>'
        '<label>密码 Password<input name="password" type="password" autocomplete="current-password" required></label>'
        '<label>动态口令 One-time password<input name="code" inputmode="numeric" autocomplete="one-time-code" maxlength="8"></label>'
        f"{patient}"
        '<button name="decision" value="allow">登录并同意 Log in and allow</button>'
        '<button name="decision" value="deny" formnovalidate>拒绝 Deny</button></form>'
    )
    return Response(_page(body), 401 if fault else 200, _HEADERS, "text/html; charset=utf-8")


def _page(body: str) -> str:
    return (
        '<!doctype html><html lang="zh"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Tongjian 登录</title><style>{_STYLE}</style><main>{body}</main></html>"
    )
