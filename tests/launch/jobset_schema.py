"""What launch/jobset.yaml may contain, as JSON schemas that refuse unknown fields.

Written from the API types of JobSet v1alpha2 (kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go at 0336a8f)
and of Kubernetes 1.31 (batch/v1 Job, core/v1 PodTemplateSpec). It covers the fields in use: their types, their choices,
and which of them are required. A new field in the manifest needs a line here, from the same sources.
"""

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {'type': 'string', 'minLength': 1}
COUNT: Schema = {'type': 'integer', 'minimum': 1}
NUMBER: Schema = {'type': 'integer', 'minimum': 0}
NAME: Schema = {'type': 'string', 'pattern': r'^[a-z0-9]([-a-z0-9]*[a-z0-9])?$', 'maxLength': 63}


def one_of(*values: str) -> Schema:
  return {'enum': list(values)}


def many(items: Schema) -> Schema:
  return {'type': 'array', 'items': items, 'minItems': 1}


def record(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
  return {
    'type': 'object',
    'properties': required | (optional or {}),
    'required': list(required),
    'additionalProperties': False,
  }


def strings(pattern: str) -> Schema:
  """A map from names of this pattern to strings."""
  return {'type': 'object', 'patternProperties': {pattern: {'type': 'string'}}, 'additionalProperties': False}


LABEL = r'^([a-z0-9.-]+/)?[A-Za-z0-9][A-Za-z0-9_.-]*$'

CONTAINER = record(
  {'name': NAME, 'image': STRING},
  {
    'command': many({'type': 'string'}),
    'args': many({'type': 'string'}),
    'env': many(record({'name': STRING, 'value': {'type': 'string'}})),
    'securityContext': record({}, {'privileged': {'type': 'boolean'}, 'runAsUser': NUMBER}),
    'resources': record({'limits': {'type': 'object', 'additionalProperties': COUNT}}),
    'volumeMounts': many(record({'name': NAME, 'mountPath': {'type': 'string', 'pattern': '^/'}})),
  },
)
EMPTY_DIR = record({'name': NAME, 'emptyDir': record({}, {'medium': one_of('', 'Memory')})})
CLAIM = record({'name': NAME, 'persistentVolumeClaim': record({'claimName': NAME}, {'readOnly': {'type': 'boolean'}})})
POD = record(
  {'containers': many(CONTAINER)},
  {
    'restartPolicy': one_of('Always', 'OnFailure', 'Never'),
    'hostNetwork': {'type': 'boolean'},
    'dnsPolicy': one_of('ClusterFirstWithHostNet', 'ClusterFirst', 'Default', 'None'),
    'terminationGracePeriodSeconds': NUMBER,
    'nodeSelector': strings(LABEL),
    'tolerations': many(record({}, {'key': STRING, 'operator': one_of('Exists', 'Equal')})),
    'volumes': many({'oneOf': [EMPTY_DIR, CLAIM]}),
  },
)
EXIT_CODES = record(
  {
    'operator': one_of('In', 'NotIn'),
    # At most 255 codes in ascending order, without duplicates.
    'values': {'type': 'array', 'items': {'type': 'integer', 'minimum': 0}, 'maxItems': 255, 'uniqueItems': True},
  },
  {'containerName': NAME},
)
JOB = record(
  {'template': record({'spec': POD})},
  {
    'parallelism': COUNT,
    'completions': COUNT,
    'completionMode': one_of('NonIndexed', 'Indexed'),
    'backoffLimit': NUMBER,
    'podFailurePolicy': record(
      {
        'rules': many(
          record({'action': one_of('FailJob', 'FailIndex', 'Ignore', 'Count'), 'onExitCodes': EXIT_CODES}),
        )
      }
    ),
  },
)
FAILURE_RULE = record(
  {
    'name': {'type': 'string', 'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'},
    'action': one_of(
      'FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts', 'RestartJob', 'RestartJobAndIgnoreMaxRestarts'
    ),
  },
  # The reasons of batch/v1 for a failed Job.
  {
    'onJobFailureReasons': many(
      one_of(
        'BackoffLimitExceeded', 'DeadlineExceeded', 'FailedIndexes', 'MaxFailedIndexesExceeded', 'PodFailurePolicy'
      )
    )
  },
)
JOBSET = record(
  {
    'apiVersion': {'const': 'jobset.x-k8s.io/v1alpha2'},
    'kind': {'const': 'JobSet'},
    'metadata': record({'name': NAME}, {'labels': strings(LABEL), 'annotations': strings(LABEL)}),
    'spec': record(
      {
        'replicatedJobs': many(record({'name': NAME, 'template': record({'spec': JOB})}, {'replicas': COUNT})),
      },
      {
        'failurePolicy': record(
          {},
          {
            'maxRestarts': NUMBER,
            'restartStrategy': one_of('Recreate', 'BlockingRecreate', 'InPlaceRestart'),
            'rules': many(FAILURE_RULE),
          },
        )
      },
    ),
  }
)
