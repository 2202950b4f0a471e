// A journey of npm fhir-kit-client through a running server. argv: FHIR base, client id, file of its private key (JWK, P-384).
// Prints one line a step; ends with status 1 at the first step that does not do what R4 says.
import assert from 'node:assert/strict'
import { createPrivateKey, randomUUID, sign } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { Client } from 'fhir-kit-client'

const [base, clientId, keyFile] = process.argv.slice(2)
const fhir = new Client({ baseUrl: base })
const told = (name) => console.log(name)
const ids = (bundle) => (bundle.entry ?? []).map((e) => e.resource.id)
const refused = async (call, status) => {
  await assert.rejects(call, (error) => {
    assert.equal(error.response.status, status)
    assert.equal(error.response.data.resourceType, 'OperationOutcome')
    return true
  })
}

// --- capability and token ---
const statement = await fhir.capabilityStatement()
assert.equal(statement.fhirVersion, '4.0.1')
assert.ok(statement.rest[0].resource.some((r) => r.type === 'Observation'))
told('capability')

const smart = await fhir.smartAuthMetadata()
const endpoint = String(smart.tokenUrl)
const jwk = JSON.parse(readFileSync(keyFile, 'utf8'))
const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url')
const now = Math.floor(Date.now() / 1000)
const claims = { iss: clientId, sub: clientId, aud: endpoint, exp: now + 240, jti: randomUUID() }
const unsigned = `${part({ alg: 'ES384', kid: jwk.kid, typ: 'JWT' })}.${part(claims)}`
const key = createPrivateKey({ key: jwk, format: 'jwk' })
const signature = sign('sha384', Buffer.from(unsigned), { key, dsaEncoding: 'ieee-p1363' }).toString('base64url')
const answer = await fetch(endpoint, {
  method: 'POST',
  body: new URLSearchParams({
    grant_type: 'client_credentials',
    scope: 'system/*.cruds',
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
    client_assertion: `${unsigned}.${signature}`,
  }),
})
assert.equal(answer.status, 200, await answer.clone().text())
await refused(() => fhir.read({ resourceType: 'Patient', id: 'x' }), 401)
fhir.bearerToken = (await answer.json()).access_token
told('token')

// --- one resource ---
const system = 'http://example.org/journey'
const person = await fhir.create({
  resourceType: 'Patient',
  body: { resourceType: 'Patient', identifier: [{ system, value: '1' }], name: [{ family: '钱', given: ['进'] }] },
})
assert.equal(person.meta.versionId, '1')
assert.equal(Client.httpFor(person).response.status, 201)
told('create')
const { id } = person
assert.deepEqual((await fhir.read({ resourceType: 'Patient', id })).name, person.name)
await refused(() => fhir.read({ resourceType: 'Patient', id: 'nobody' }), 404)
told('read')
const updated = await fhir.update({ resourceType: 'Patient', id, body: { ...person, gender: 'female' } })
assert.equal(updated.meta.versionId, '2')
const stale = { headers: { 'If-Match': 'W/"1"' } }
await refused(() => fhir.update({ resourceType: 'Patient', id, body: person, options: stale }), 412)
await refused(() => fhir.update({ resourceType: 'Patient', id, body: { ...person, gender: 'nonsense' } }), 422)
told('update')
const first = await fhir.vread({ resourceType: 'Patient', id, version: '1' })
assert.equal(first.gender, undefined)
told('vread')
const jsonPatch = [{ op: 'add', path: '/birthDate', value: '1962-05-17' }]
const patched = await fhir.patch({ resourceType: 'Patient', id, jsonPatch })
assert.deepEqual([patched.gender, patched.birthDate, patched.meta.versionId], ['female', '1962-05-17', '3'])
told('patch')
const body = { resourceType: 'Patient', identifier: [{ system, value: '1' }], active: true }
const again = await fhir.update({ resourceType: 'Patient', searchParams: { identifier: `${system}|1` }, body })
assert.deepEqual([again.id, again.active, again.meta.versionId], [id, true, '4'])
told('conditional update')

// --- transaction and batch ---
const result = (number) => ({
  fullUrl: `urn:uuid:${randomUUID()}`,
  request: { method: 'POST', url: 'Observation' },
  resource: {
    resourceType: 'Observation',
    status: 'final',
    code: { coding: [{ system: 'http://loinc.org', code: '718-7' }] },
    subject: { reference: `Patient/${id}` },
    effectiveDateTime: `2026-03-0${number}`,
    valueQuantity: { value: 120 + number, unit: 'g/L', system: 'http://unitsofmeasure.org', code: 'g/L' },
  },
})
const entry = [1, 2, 3, 4, 5].map(result)
const report = {
  resourceType: 'DiagnosticReport',
  status: 'final',
  code: { text: '血常规' },
  subject: { reference: `Patient/${id}` },
  result: entry.map((e) => ({ reference: e.fullUrl })),
}
entry.push({ request: { method: 'POST', url: 'DiagnosticReport' }, resource: report })
const stored = await fhir.transaction({ body: { resourceType: 'Bundle', type: 'transaction', entry } })
assert.equal(stored.type, 'transaction-response')
assert.deepEqual(stored.entry.map((e) => e.response.status), Array(6).fill('201 Created'))
const place = stored.entry[5].response.location.match(/DiagnosticReport\/([^/]+)\/_history/)[1]
const whole = await fhir.read({ resourceType: 'DiagnosticReport', id: place })
const oldest = await fhir.resolve({ reference: whole.result[0].reference })
assert.equal(oldest.valueQuantity.value, 121)
told('transaction')
const asked = ['Patient/nobody', `Patient/${id}`, `Observation?patient=${id}&_count=2`]
const batch = await fhir.batch({
  body: { resourceType: 'Bundle', type: 'batch', entry: asked.map((url) => ({ request: { method: 'GET', url } })) },
})
assert.deepEqual(batch.entry.map((e) => e.response.status.slice(0, 3)), ['404', '200', '200'])
assert.equal(batch.entry[2].resource.entry.length, 2)
told('batch')

// --- search and pages ---
let page = await fhir.search({ resourceType: 'Observation', searchParams: { patient: id, _sort: '-date', _count: '2' } })
const seen = []
const sizes = []
while (page) {
  seen.push(...page.entry.map((e) => e.resource.effectiveDateTime))
  sizes.push(page.entry.length)
  page = await fhir.nextPage({ bundle: page })
}
assert.deepEqual(sizes, [2, 2, 1])
assert.deepEqual(seen, ['2026-03-05', '2026-03-04', '2026-03-03', '2026-03-02', '2026-03-01'])
const posted = await fhir.search({
  resourceType: 'Observation',
  searchParams: { 'subject:Patient.identifier': `${system}|1`, 'value-quantity': 'ge125|http://unitsofmeasure.org|g/L' },
  options: { postSearch: true },
})
assert.equal(posted.entry.length, 1)
const within = await fhir.compartmentSearch({ resourceType: 'DiagnosticReport', compartment: { resourceType: 'Patient', id } })
assert.deepEqual(ids(within), [place])
const all = await fhir.systemSearch({ searchParams: { _type: 'Patient,DiagnosticReport', _id: `${id},${place}` } })
assert.deepEqual(ids(all).sort(), [id, place].sort())
told('search')

// --- history and operations ---
const history = await fhir.history({ resourceType: 'Patient', id })
assert.deepEqual(history.entry.map((e) => e.resource.meta.versionId), ['4', '3', '2', '1'])
assert.ok((await fhir.typeHistory({ resourceType: 'Observation' })).entry.length >= 5)
assert.ok((await fhir.systemHistory()).entry.length >= 10)
told('history')
const last = await fhir.operation({ name: 'lastn', resourceType: 'Observation', method: 'GET', input: { patient: `Patient/${id}` } })
assert.deepEqual(last.entry.map((e) => e.resource.effectiveDateTime), ['2026-03-05'])
const everything = await fhir.operation({ name: '$everything', resourceType: 'Patient', id, method: 'GET' })
assert.equal(everything.entry.length, 7)
const checked = await fhir.operation({ name: 'validate', resourceType: 'Patient', input: { resourceType: 'Patient', gender: 'nonsense' } })
assert.ok(checked.issue.some((i) => i.severity === 'error'))
told('operation')

// --- and it is gone ---
await fhir.delete({ resourceType: 'DiagnosticReport', id: place })
await refused(() => fhir.read({ resourceType: 'DiagnosticReport', id: place }), 410)
told('delete')
