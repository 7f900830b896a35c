"""The messages of TensorFlow Serving's API, in protocol-buffer syntax, as text that `serving.wire` compiles.

Names, field numbers and types are those of tensorflow/core and tensorflow_serving/apis at version 2.21, so that
every encoded byte is the same; ``tests/test_wire.py`` compares with the official modules. What is not declared here
(node definitions, object graphs, type specs) is kept as unknown fields and encoded again unchanged.
"""

from __future__ import annotations

TENSORFLOW = """
enum DataType {
  DT_INVALID = 0; DT_FLOAT = 1; DT_DOUBLE = 2; DT_INT32 = 3; DT_UINT8 = 4; DT_INT16 = 5; DT_INT8 = 6;
  DT_STRING = 7; DT_COMPLEX64 = 8; DT_INT64 = 9; DT_BOOL = 10; DT_QINT8 = 11; DT_QUINT8 = 12; DT_QINT32 = 13;
  DT_BFLOAT16 = 14; DT_QINT16 = 15; DT_QUINT16 = 16; DT_UINT16 = 17; DT_COMPLEX128 = 18; DT_HALF = 19;
  DT_RESOURCE = 20; DT_VARIANT = 21; DT_UINT32 = 22; DT_UINT64 = 23; DT_FLOAT8_E5M2 = 24; DT_FLOAT8_E4M3FN = 25;
  DT_FLOAT8_E4M3FNUZ = 26; DT_FLOAT8_E4M3B11FNUZ = 27; DT_FLOAT8_E5M2FNUZ = 28; DT_INT4 = 29; DT_UINT4 = 30;
  DT_INT2 = 31; DT_UINT2 = 32; DT_FLOAT4_E2M1FN = 33;
  DT_FLOAT_REF = 101; DT_DOUBLE_REF = 102; DT_INT32_REF = 103; DT_UINT8_REF = 104; DT_INT16_REF = 105;
  DT_INT8_REF = 106; DT_STRING_REF = 107; DT_COMPLEX64_REF = 108; DT_INT64_REF = 109; DT_BOOL_REF = 110;
  DT_QINT8_REF = 111; DT_QUINT8_REF = 112; DT_QINT32_REF = 113; DT_BFLOAT16_REF = 114; DT_QINT16_REF = 115;
  DT_QUINT16_REF = 116; DT_UINT16_REF = 117; DT_COMPLEX128_REF = 118; DT_HALF_REF = 119; DT_RESOURCE_REF = 120;
  DT_VARIANT_REF = 121; DT_UINT32_REF = 122; DT_UINT64_REF = 123; DT_FLOAT8_E5M2_REF = 124;
  DT_FLOAT8_E4M3FN_REF = 125; DT_FLOAT8_E4M3FNUZ_REF = 126; DT_FLOAT8_E4M3B11FNUZ_REF = 127;
  DT_FLOAT8_E5M2FNUZ_REF = 128; DT_INT4_REF = 129; DT_UINT4_REF = 130; DT_INT2_REF = 131; DT_UINT2_REF = 132;
  DT_FLOAT4_E2M1FN_REF = 133;
}
message TensorShapeProto {
  message Dim { int64 size = 1; string name = 2; }
  repeated Dim dim = 2;
  bool unknown_rank = 3;
}
message ResourceHandleProto {
  message DtypeAndShape { DataType dtype = 1; TensorShapeProto shape = 2; }
  string device = 1; string container = 2; string name = 3; uint64 hash_code = 4; string maybe_type_name = 5;
  repeated DtypeAndShape dtypes_and_shapes = 6;
}
message VariantTensorDataProto { string type_name = 1; bytes metadata = 2; repeated TensorProto tensors = 3; }
message TensorProto {
  DataType dtype = 1;
  TensorShapeProto tensor_shape = 2;
  int32 version_number = 3;
  bytes tensor_content = 4;
  repeated int32 half_val = 13;
  repeated float float_val = 5;
  repeated double double_val = 6;
  repeated int32 int_val = 7;
  repeated bytes string_val = 8;
  repeated float scomplex_val = 9;
  repeated int64 int64_val = 10;
  repeated bool bool_val = 11;
  repeated double dcomplex_val = 12;
  repeated ResourceHandleProto resource_handle_val = 14;
  repeated VariantTensorDataProto variant_val = 15;
  repeated uint32 uint32_val = 16;
  repeated uint64 uint64_val = 17;
  bytes float8_val = 18;
}
message BytesList { repeated bytes value = 1; }
message FloatList { repeated float value = 1; }
message Int64List { repeated int64 value = 1; }
message Feature { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }
message Features { map<string, Feature> feature = 1; }
message FeatureList { repeated Feature feature = 1; }
message FeatureLists { map<string, FeatureList> feature_list = 1; }
message Example { Features features = 1; }
message SequenceExample { Features context = 1; FeatureLists feature_lists = 2; }
message TypeSpecProto { }
message TensorInfo {
  message CooSparse {
    string values_tensor_name = 1; string indices_tensor_name = 2; string dense_shape_tensor_name = 3;
  }
  message CompositeTensor { TypeSpecProto type_spec = 1; repeated TensorInfo components = 2; }
  oneof encoding { string name = 1; CooSparse coo_sparse = 4; CompositeTensor composite_tensor = 5; }
  DataType dtype = 2;
  TensorShapeProto tensor_shape = 3;
}
message SignatureDef {
  map<string, TensorInfo> inputs = 1;
  map<string, TensorInfo> outputs = 2;
  string method_name = 3;
  map<string, TensorProto> defaults = 4;
}
message MetaGraphDef {
  message MetaInfoDef { repeated string tags = 4; string tensorflow_version = 5; }
  MetaInfoDef meta_info_def = 1;
  map<string, SignatureDef> signature_def = 5;
}
message SavedModel { int64 saved_model_schema_version = 1; repeated MetaGraphDef meta_graphs = 2; }
message ThreadPoolOptionProto { int32 num_threads = 1; string global_name = 2; }
message ConfigProto {
  map<string, int32> device_count = 1;
  int32 intra_op_parallelism_threads = 2;
  int32 inter_op_parallelism_threads = 5;
  bool use_per_session_threads = 9;
  repeated ThreadPoolOptionProto session_inter_op_thread_pool = 12;
}
message RunOptions { int64 timeout_in_ms = 2; int32 inter_op_thread_pool = 3; }
message NamedTensorProto { string name = 1; TensorProto tensor = 2; }
"""

ERROR_CODES = """
enum Code {
  OK = 0; CANCELLED = 1; UNKNOWN = 2; INVALID_ARGUMENT = 3; DEADLINE_EXCEEDED = 4; NOT_FOUND = 5;
  ALREADY_EXISTS = 6; PERMISSION_DENIED = 7; UNAUTHENTICATED = 16; RESOURCE_EXHAUSTED = 8;
  FAILED_PRECONDITION = 9; ABORTED = 10; OUT_OF_RANGE = 11; UNIMPLEMENTED = 12; INTERNAL = 13; UNAVAILABLE = 14;
  DATA_LOSS = 15; DO_NOT_USE_RESERVED_FOR_FUTURE_EXPANSION_USE_DEFAULT_IN_SWITCH_INSTEAD_ = 20;
}
"""

# A SavedModel's graph, as far as its operations go.
SCANNED = """
message NameAttrList { string name = 1; }
message ListValue { repeated NameAttrList func = 9; }
message AttrValue { ListValue list = 1; bytes s = 2; NameAttrList func = 10; }
message NodeDef { string name = 1; string op = 2; repeated string input = 3; map<string, AttrValue> attr = 5; }
message OpDef { string name = 1; }
message FunctionDef { OpDef signature = 1; repeated NodeDef node_def = 3; }
message FunctionDefLibrary { repeated FunctionDef function = 1; }
message GraphDef { repeated NodeDef node = 1; FunctionDefLibrary library = 2; }
message TensorInfo { string name = 1; }
message SignatureDef { map<string, TensorInfo> outputs = 2; string method_name = 3; }
message MetaGraphDef { GraphDef graph_def = 2; map<string, SignatureDef> signature_def = 5; }
message SavedModel { repeated MetaGraphDef meta_graphs = 2; }
"""

HEALTH = """
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse {
  enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; }
  ServingStatus status = 1;
}
"""

# Configuration files of the server; not in the official Python package.
MONITORING = """
message PrometheusConfig { bool enable = 1; string path = 2; }
message MonitoringConfig { PrometheusConfig prometheus_config = 1; }
message SSLConfig { string server_key = 1; string server_cert = 2; string custom_ca = 3; bool client_verify = 4; }
message BatchingParameters {
  google.protobuf.Int64Value max_batch_size = 1;
  google.protobuf.Int64Value batch_timeout_micros = 2;
  google.protobuf.Int64Value max_enqueued_batches = 3;
  google.protobuf.Int64Value num_batch_threads = 4;
  google.protobuf.StringValue thread_pool_name = 5;
  repeated int64 allowed_batch_sizes = 6;
  bool pad_variable_length_inputs = 7;
  google.protobuf.BoolValue enable_large_batch_splitting = 8;
  google.protobuf.Int64Value max_execution_batch_size = 9;
}
"""

SERVING = """
message ModelSpec {
  string name = 1;
  oneof version_choice { google.protobuf.Int64Value version = 2; string version_label = 4; }
  string signature_name = 3;
}
message PredictStreamedOptions {
  enum RequestState { NONE = 0; SPLIT = 1; END_SPLIT = 2; CANCEL = 3; }
  RequestState request_state = 1;
  map<string, int32> split_dimensions = 2;
  bool return_single_response = 3;
}
message PredictRequest {
  message RequestOptions {
    message Handshake { int64 estimated_payload_bytes = 1; }
    enum DeterministicMode { DETERMINISTIC_MODE_UNSPECIFIED = 0; FIXED_DECODER_SLOT = 1; }
    optional bytes client_id = 1;
    optional DeterministicMode deterministic_mode = 2;
    optional bool return_additional_arrays_from_prefill = 3;
    repeated int64 return_stoptokens = 4;
    optional bool return_all_stoptokens = 9;
    optional int64 max_cache_length = 6;
    optional Handshake handshake = 13;
  }
  ModelSpec model_spec = 1;
  map<string, tensorflow.TensorProto> inputs = 2;
  repeated string output_filter = 3;
  PredictStreamedOptions predict_streamed_options = 5;
  optional bytes client_id = 6;
  optional RequestOptions request_options = 7;
}
message PredictResponse { ModelSpec model_spec = 2; map<string, tensorflow.TensorProto> outputs = 1; }
message ExampleList { repeated tensorflow.Example examples = 1; }
message ExampleListWithContext { repeated tensorflow.Example examples = 1; tensorflow.Example context = 2; }
message Input {
  oneof kind { ExampleList example_list = 1; ExampleListWithContext example_list_with_context = 2; }
}
message Class { string label = 1; float score = 2; }
message Classifications { repeated Class classes = 1; }
message ClassificationResult { repeated Classifications classifications = 1; }
message ClassificationRequest { ModelSpec model_spec = 1; Input input = 2; }
message ClassificationResponse { ModelSpec model_spec = 2; ClassificationResult result = 1; }
message Regression { float value = 1; }
message RegressionResult { repeated Regression regressions = 1; }
message RegressionRequest { ModelSpec model_spec = 1; Input input = 2; }
message RegressionResponse { ModelSpec model_spec = 2; RegressionResult result = 1; }
message InferenceTask { ModelSpec model_spec = 1; string method_name = 2; }
message InferenceResult {
  ModelSpec model_spec = 1;
  oneof result { ClassificationResult classification_result = 2; RegressionResult regression_result = 3; }
}
message MultiInferenceRequest { repeated InferenceTask tasks = 1; Input input = 2; }
message MultiInferenceResponse { repeated InferenceResult results = 1; }
message SignatureDefMap { map<string, tensorflow.SignatureDef> signature_def = 1; }
message GetModelMetadataRequest { ModelSpec model_spec = 1; repeated string metadata_field = 2; }
message GetModelMetadataResponse { ModelSpec model_spec = 1; map<string, google.protobuf.Any> metadata = 2; }
message StatusProto { tensorflow.error.Code error_code = 1; string error_message = 2; }
message GetModelStatusRequest { ModelSpec model_spec = 1; }
message ModelVersionStatus {
  enum State { UNKNOWN = 0; START = 10; LOADING = 20; AVAILABLE = 30; UNLOADING = 40; END = 50; }
  int64 version = 1;
  State state = 2;
  StatusProto status = 3;
}
message GetModelStatusResponse { repeated ModelVersionStatus model_version_status = 1; }
message FileSystemStoragePathSourceConfig {
  message ServableVersionPolicy {
    message Latest { uint32 num_versions = 1; }
    message All { }
    message Specific { repeated int64 versions = 1; }
    oneof policy_choice { Latest latest = 100; All all = 101; Specific specific = 102; }
  }
  message ServableToMonitor {
    string servable_name = 1; string base_path = 2; ServableVersionPolicy servable_version_policy = 4;
  }
  repeated ServableToMonitor servables = 5;
  int64 file_system_poll_wait_seconds = 3;
  bool fail_if_zero_versions_at_startup = 4;
  bool servable_versions_always_present = 6;
}
message LogCollectorConfig { string type = 1; string filename_prefix = 2; }
message PerTaskSamplingConfig { string dc = 1; optional int32 task_index = 2; double sampling_rate = 3; }
message SamplingConfig {
  enum Attributes { ATTR_DEFAULT = 0; ATTR_REQUEST_ORIGIN = 1; ATTR_REQUEST_CRITICALITY = 2; }
  double sampling_rate = 1; repeated PerTaskSamplingConfig per_task_sampling_configs = 3; int32 attributes = 2;
}
message LoggingConfig {
  LogCollectorConfig log_collector_config = 1;
  SamplingConfig sampling_config = 2;
  google.protobuf.Any custom_logging_config = 3;
}
message LogMetadata {
  ModelSpec model_spec = 1; SamplingConfig sampling_config = 2; repeated string saved_model_tags = 3;
  int64 timestamp_secs = 4; string dc = 5; string request_origin = 6; string request_criticality = 7;
  int64 safe_aggregation_privacy_key = 8;
}
enum ModelType { MODEL_TYPE_UNSPECIFIED = 0; TENSORFLOW = 1; OTHER = 2; }
message ModelConfig {
  string name = 1;
  string base_path = 2;
  ModelType model_type = 3;
  string model_platform = 4;
  FileSystemStoragePathSourceConfig.ServableVersionPolicy model_version_policy = 7;
  map<string, int64> version_labels = 8;
  LoggingConfig logging_config = 6;
}
message ModelConfigList { repeated ModelConfig config = 1; }
message ModelServerConfig {
  oneof config { ModelConfigList model_config_list = 1; google.protobuf.Any custom_model_config = 2; }
}
message Metric {
  string name = 1;
  oneof value_increase { int64 int64_value_increase = 2; }
}
message ReloadConfigRequest { ModelServerConfig config = 1; repeated string metric_names = 2; }
message ReloadConfigResponse { StatusProto status = 1; repeated Metric metric = 2; }
message PredictLog { PredictRequest request = 1; PredictResponse response = 2; }
message ClassifyLog { ClassificationRequest request = 1; ClassificationResponse response = 2; }
message RegressLog { RegressionRequest request = 1; RegressionResponse response = 2; }
message MultiInferenceLog { MultiInferenceRequest request = 1; MultiInferenceResponse response = 2; }
message PredictStreamedLog { repeated PredictRequest request = 1; repeated PredictResponse response = 2; }
message SessionRunLog { }
message PredictionLog {
  LogMetadata log_metadata = 1;
  oneof log_type {
    ClassifyLog classify_log = 2; RegressLog regress_log = 3; PredictLog predict_log = 6;
    PredictStreamedLog predict_streamed_log = 7; MultiInferenceLog multi_inference_log = 4;
    SessionRunLog session_run_log = 5;
  }
}
"""
