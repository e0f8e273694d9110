"""The part of Triton's model configuration that we write, so that protobuf can read it strictly."""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

FIELDS = {  # message -> field -> type; "+" in front: repeated. Names as in Triton's documentation
    "Tensor": {"name": "string", "data_type": "DataType", "dims": "+int64"},
    "Output": {
        "name": "string",
        "data_type": "DataType",
        "dims": "+int64",
        "label_filename": "string",
    },
    "Instances": {"count": "int32", "kind": "Kind"},
    "Batching": {"preferred_batch_size": "+int32", "max_queue_delay_microseconds": "uint64"},
    "Value": {"string_value": "string"},
    "Parameter": {"key": "string", "value": "Value"},
    "ModelConfig": {
        "name": "string",
        "backend": "string",
        "default_model_filename": "string",
        "max_batch_size": "int32",
        "input": "+Tensor",
        "output": "+Output",
        "instance_group": "+Instances",
        "dynamic_batching": "Batching",
        "parameters": "+Parameter",
    },
}
ENUMS = {
    "DataType": ("TYPE_INVALID", "TYPE_UINT8", "TYPE_FP16", "TYPE_FP32"),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU"),
}


def parsed(text: str) -> Any:
    """A config.pbtxt as a message; an unknown field, a wrong type or a repeated one is an error."""
    return text_format.Parse(text, _config_class()())


def enum_name(message: Any, field: str) -> str:
    """The name of an enumerator, of which a message holds the number."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    return str(kind.values_by_number[getattr(message, field)].name)


def _config_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="triton.proto", package="t", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            plain = kind.removeprefix("+")
            item = message.field.add(name=field, number=number)
            item.label = item.LABEL_OPTIONAL if plain == kind else item.LABEL_REPEATED
            if plain in FIELDS:
                item.type, item.type_name = item.TYPE_MESSAGE, f".t.{plain}"
            elif plain in ENUMS:
                item.type, item.type_name = item.TYPE_ENUM, f".t.{plain}"
            else:
                item.type = item.Type.Value(f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))
