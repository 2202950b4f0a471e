"""The page where a person logs in and agrees to what an app may do, without script and without anything from elsewhere (SMART App
Launch 2.2, authorization code; what is checked stands in fhir_server.login). In the language of the browser, Chinese or English, with
a link to the other."""

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
from fhir_server.api.cards import language_of
from fhir_server.api.interaction import in_thread
from fhir_server.api.security import address_of, services_of
from fhir_server.authorization import Refused
from fhir_server.errors import Category, Fault
from fhir_server.recognition.explain import Language

router = APIRouter()

_STYLE: Final = (
    "body{font:16px/1.5 sans-serif;max-width:30rem;margin:2rem auto;padding:0 1rem}label{display:block;margin:.8rem 0}"
    "input{display:block;width:100%;box-sizing:border-box;font:inherit;padding:.4rem}button{font:inherit;padding:.5rem 1.2rem;"
    "margin-right:1rem}.fault{color:#a00}li{overflow-wrap:anywhere}li code{color:#555;font-size:.85em}nav{text-align:right}"
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


_LANGUAGE: Final = "ui_locales"
"""The parameter of OpenID Connect for it (Core 1.0 section 3.1.2.1); without it Accept-Language counts."""
_WORDS: Final[dict[Language, dict[str, str]]] = {
    "zh": {
        "title": "登录", "asks": "请求以下权限:", "user": "用户名", "password": "密码", "code": "动态口令(未启用则留空)",
        "patient": "患者ID", "allow": "登录并同意", "deny": "拒绝", "tag": "zh-CN", "other": "English",
        "wrong": "用户名、密码或动态口令不对,或账户已锁定。", "unknown": "应用或回调地址未登记。请联系该应用的管理员。",
        "form": "表单不完整或过大。请回到应用重新登录。",
        "c": "新建", "r": "读取", "u": "修改", "d": "删除", "s": "查询", "*": "所有资料", "only": "仅限",
        "offline_access": "退出后仍可访问", "online_access": "在线期间可访问", "openid": "您的登录身份", "profile": "您的姓名",
        "fhirUser": "您的人员资料", "launch/patient": "选定一位患者",
    },
    "en": {
        "title": "Log in", "asks": "asks for:", "user": "Name", "password": "Password",
        "code": "One-time password (empty if you have none)", "patient": "Patient id", "allow": "Log in and allow", "deny": "Deny",
        "tag": "en", "other": "中文", "wrong": "Name, password or one-time password is wrong, or the account is locked.",
        "unknown": "The app or its address is not registered. Ask who runs the app.",
        "form": "The form is incomplete or too large. Go back to the app and log in again.",
        "c": "create", "r": "read", "u": "change", "d": "delete", "s": "search", "*": "all data", "only": "only",
        "offline_access": "access while you are away", "online_access": "access while you are logged in", "openid": "who you are",
        "profile": "your name", "fhirUser": "your entry in the directory", "launch/patient": "one patient, whom you choose",
    },
}  # fmt: skip


@router.get(f"{PREFIX}/authorize")
async def authorize(request: Request) -> Response:
    """The page for an authorization request; an error goes back to the app, or is shown when the app is not known."""
    return await _checked(request, dict(request.query_params), None)


@router.post(f"{PREFIX}/authorize")
async def agree(request: Request) -> Response:
    """Name, password, one-time password and the decision -> back to the app with a code, or the page again."""
    try:
        form = await fields_of(request)
    except Refused:
        return _told(_language(request, {}), "form")
    return await _checked(request, form, form)


def _language(request: Request, asked: Mapping[str, str]) -> Language:
    return language_of(asked.get(_LANGUAGE) or request.headers.get("accept-language"))


def _told(language: Language, fault: str) -> Response:
    return _page(language, f'<p class="fault" role="alert">{_WORDS[language][fault]}</p>', 400)


async def _checked(request: Request, asked: Mapping[str, str], form: Mapping[str, str] | None) -> Response:
    language = _language(request, asked)
    try:
        wanted = login.wish(request.app.state.apps, asked, request.app.state.base_url)
    except login.Unanswerable:
        return _told(language, "unknown")
    except Refused as refused:
        return _back(asked["redirect_uri"], {"error": refused.error, "error_description": refused.text}, asked)
    if form is None:
        return _shown(language, wanted, asked, "")
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
        return _shown(language, wanted, asked, _WORDS[language]["wrong"], form.get("user", ""))
    if isinstance(code, Refused):
        return _back(wanted.redirect_uri, {"error": code.error, "error_description": code.text}, asked)
    return _back(wanted.redirect_uri, {"code": code}, asked)


def _back(redirect: str, answer: Mapping[str, str], asked: Mapping[str, Any]) -> Response:
    told = {**answer, **({"state": asked["state"]} if asked.get("state") else {})}
    join = "&" if urlsplit(redirect).query else "?"
    return Response(status_code=303, headers={**_HEADERS, "Location": f"{redirect}{join}{urlencode(told)}"})


def _shown(language: Language, wanted: login.Wish, asked: Mapping[str, str], fault: str, user: str = "") -> Response:
    words, other = _WORDS[language], _WORDS["en" if language == "zh" else "zh"]
    sent = {n: asked.get(n, "") for n in _ASKED}
    hidden = "".join(
        f'<input type="hidden" name="{n}" value="{escape(v)}">' for n, v in (sent | {_LANGUAGE: words["tag"]}).items()
    )
    switch = escape(urlencode({**sent, _LANGUAGE: other["tag"]}))
    scopes = "".join(f"<li>{_meant(s, words)} <code>{escape(s)}</code></li>" for s in sorted(wanted.scopes))
    # Where to go on: at the start, or after a fault at the password.
    at_user, at_password = ("", " autofocus") if user else (" autofocus", "")
    patient = (
        f'<label>{words["patient"]}<input name="patient" value="{escape(asked.get("patient", ""))}" required maxlength="64"></label>'
        if wanted.needs_patient
        else ""
    )
    body = (
        f'<nav><a href="authorize?{switch}" lang="{other["tag"]}">{words["other"]}</a></nav><h1>{words["title"]}</h1>'
        f"<p><strong>{escape(wanted.app.name or wanted.app.id)}</strong> {words['asks']}</p><ul>{scopes}</ul>"
        + (f'<p class="fault" role="alert">{fault}</p>' if fault else "")
        + f'<form method="post" action="authorize">{hidden}'
        f'<label>{words["user"]}<input name="user" value="{escape(user)}" autocomplete="username" required{at_user} maxlength="100">'
        f'</label><label>{words["password"]}<input name="password" type="password" autocomplete="current-password" required'
        f"{at_password}></label>"
        f'<label>{words["code"]}<input name="code" inputmode="numeric" autocomplete="one-time-code" maxlength="8"></label>'
        f"{patient}"
        f'<button name="decision" value="allow">{words["allow"]}</button>'
        f'<button name="decision" value="deny" formnovalidate>{words["deny"]}</button></form>'
    )
    return _page(language, body, 401 if fault else 200)


def _meant(scope: str, words: Mapping[str, str]) -> str:
    """A scope in words; the types of FHIR keep their names."""
    if scope in words:
        return words[scope]
    kind, _, rest = scope.partition("/")[2].partition(".")
    letters, _, query = rest.partition("?")
    told = f"{'/'.join(words[c] for c in letters if c in words)} {words.get(kind, escape(kind))}"
    return f"{told} ({words['only']} {escape(query)})" if query else told


def _page(language: Language, body: str, status: int) -> Response:
    words = _WORDS[language]
    text = (
        f'<!doctype html><html lang="{words["tag"]}"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Tongjian {words['title']}</title><style>{_STYLE}</style><main>{body}</main></html>"
    )
    headers = {**_HEADERS, "Content-Language": words["tag"], "Vary": "Accept-Language"}
    return Response(text, status, headers, "text/html; charset=utf-8")
