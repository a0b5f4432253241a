"""TensorFlow Datasets builders that need no TensorFlow: the published files in, array_record out, in published order.

Each is used like any other builder:

    builder = Cifar100(data_dir=..., file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=...))
    builder.as_data_source("train")
"""
