{{/* The chart's name, as a label. */}}
{{- define "dmd-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The name of the release's objects; the Lease's, the Service's and the roles' names begin with it. */}}
{{- define "dmd-operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ $name = .Release.Name }}{{ else }}{{ $name = printf "%s-%s" .Release.Name $name }}{{ end }}
{{- default $name .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* Labels that find the operator's pods; they can never change. */}}
{{- define "dmd-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dmd-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of the pod of `helm test`, which no selector of the operator's pods finds. */}}
{{- define "dmd-operator.testLabels" -}}
app.kubernetes.io/name: {{ include "dmd-operator.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of every object. */}}
{{- define "dmd-operator.labels" -}}
{{ include "dmd-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The operator's service account. */}}
{{- define "dmd-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "dmd-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name: without serviceAccount.create, name the one to use" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The operator's image. */}}
{{- define "dmd-operator.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* What manifests may leave out, as dmd_api.defaults.Defaults reads it: what is empty is not there. */}}
{{- define "dmd-operator.defaults" -}}
{{- $defaults := dict "images" (dict "trainer" (.Values.defaults.images.trainer | default (printf "ghcr.io/dmd-operator/dmd-trainer:%s" .Chart.AppVersion))) }}
{{- with .Values.defaults.storage }}
{{- if .uri }}
{{- $storage := dict "uri" .uri "retain" .retain }}
{{- with .endpointUrl }}{{ $_ := set $storage "endpointUrl" . }}{{ end }}
{{- if .credentialsSecretRef.name }}{{ $_ := set $storage "credentialsSecretRef" .credentialsSecretRef }}{{ end }}
{{- $_ := set $defaults "storage" $storage }}
{{- end }}
{{- end }}
{{- with .Values.defaults.tracking }}
{{- $tracking := dict }}
{{- with .uri }}{{ $_ := set $tracking "uri" . }}{{ end }}
{{- if .credentialsSecretRef.name }}{{ $_ := set $tracking "credentialsSecretRef" .credentialsSecretRef }}{{ end }}
{{- $_ := set $defaults "tracking" $tracking }}
{{- end }}
{{- if .Values.defaults.caBundle.configMapKeyRef.name }}{{ $_ := set $defaults "caBundle" .Values.defaults.caBundle }}{{ end }}
{{- toJson $defaults }}
{{- end }}

{{/* Who may reach the trainers' progress port: the operator, which asks for it, and Prometheus, which reads metrics there. */}}
{{- define "dmd-operator.progressFrom" -}}
{{- $namespace := dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace) }}
{{- $pods := dict "matchLabels" (include "dmd-operator.selectorLabels" . | fromYaml) }}
{{- prepend .Values.networkPolicy.metricsFrom (dict "namespaceSelector" $namespace "podSelector" $pods) | toJson }}
{{- end }}
