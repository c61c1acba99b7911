"""The routes of encryption at rest: how it stands, and the rotation of its keys."""

from __future__ import annotations

from greenroom import telemetry
from greenroom.api import schemas, views
from greenroom.api.request import Answer, Call


async def show(call: Call) -> Answer:
    """Show whether the store is encrypted, by which key, and how far a rotation has come."""
    return Answer(views.encryption(call.store.vault, call.store.resealing.progress, await call.store.resealing.keys()))


async def rotate(call: Call) -> Answer:
    """Wrap all data keys under a new key at once; unless ``data_keys`` is false, replace them, too, while the node
    serves: what is stored is encrypted anew, and the status tells how far that has come.
    """
    given = schemas.read(call.body, schemas.KeyRotation) if call.body else schemas.KeyRotation()
    rewrapped = await call.store.resealing.rotate(retires=given.data_keys)
    vault = call.store.vault
    detail = f"{rewrapped} data keys are wrapped anew"
    call.services.facts.emit(telemetry.EncryptionChanged(vault.mode, vault.key, detail))
    return await show(call)
