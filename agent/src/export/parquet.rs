//! A table as Parquet: a column of the same type for each of the table, compressed with Snappy.
//!
//! Owns the types: times are INT64 TIMESTAMP(MICROS, UTC), values FLOAT, numbers INT64, text UTF8, flags BOOLEAN; what is missing is null.
//! Holds one row group, of [`GROUP_CELLS`] cells: 6 MB of 32-bit values with what says which are there, about as much again while it is
//! encoded, and for each group that was written some 300 bytes a column until the footer.

use std::io::{self, Write};
use std::sync::Arc;

use ::parquet::basic::{Compression, Encoding, LogicalType, Repetition, TimeUnit, Type as Physical};
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, FloatType, Int64Type};
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::{WriterProperties, WriterPropertiesPtr};
use ::parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use ::parquet::schema::types::{ColumnPath, Type, TypePtr};

use super::table::{Cell, Column, Kind, TableWriter};

/// Cells of a row group.
const GROUP_CELLS: usize = 1_000_000;
/// Rows of a row group, at most and at least.
const GROUP_ROWS_MAX: usize = 131_072;
const GROUP_ROWS_MIN: usize = 1_024;
/// Text of a row group: rows with long texts make smaller ones.
const GROUP_TEXT_BYTES: usize = 8 << 20;

/// The values of one column of a row group.
enum Values {
    Long(Vec<i64>),
    Float(Vec<f32>),
    Text(Vec<ByteArray>),
    Flag(Vec<bool>),
}

struct Gathered {
    values: Values,
    /// 1 where there is a value; `None` where each row has one.
    there: Option<Vec<i16>>,
}

/// Writes Parquet.
pub(crate) struct ParquetWriter<'w> {
    file: SerializedFileWriter<&'w mut (dyn Write + Send)>,
    columns: Vec<Gathered>,
    rows: usize,
    rows_max: usize,
    text_bytes: usize,
}

impl<'w> ParquetWriter<'w> {
    /// Writes what a file begins with.
    pub(crate) fn new(columns: &[Column], out: &'w mut (dyn Write + Send)) -> io::Result<ParquetWriter<'w>> {
        let schema = schema(columns).map_err(io_error)?;
        let file = SerializedFileWriter::new(out, schema, properties(columns)).map_err(io_error)?;
        let gathered = columns.iter().map(|column| Gathered {
            values: match column.kind {
                Kind::Time | Kind::Number => Values::Long(Vec::new()),
                Kind::Float => Values::Float(Vec::new()),
                Kind::Text => Values::Text(Vec::new()),
                Kind::Flag => Values::Flag(Vec::new()),
            },
            there: (!column.required).then(Vec::new),
        });
        let rows_max = (GROUP_CELLS / columns.len().max(1)).clamp(GROUP_ROWS_MIN, GROUP_ROWS_MAX);
        Ok(ParquetWriter { file, columns: gathered.collect(), rows: 0, rows_max, text_bytes: 0 })
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        if self.rows == 0 {
            return Ok(());
        }
        let mut group = self.file.next_row_group()?;
        for column in &mut self.columns {
            if let Some(mut writer) = group.next_column()? {
                column.write(&mut writer)?;
                writer.close()?;
            }
        }
        group.close()?;
        (self.rows, self.text_bytes) = (0, 0);
        Ok(())
    }
}

impl TableWriter for ParquetWriter<'_> {
    fn row(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        for (column, cell) in self.columns.iter_mut().zip(cells) {
            self.text_bytes += column.add(cell)?;
        }
        self.rows += 1;
        if self.rows >= self.rows_max || self.text_bytes >= GROUP_TEXT_BYTES {
            self.write_group().map_err(io_error)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.write_group().and_then(|()| self.file.finish()).map_err(io_error)?;
        Ok(())
    }
}

impl Gathered {
    /// Adds a cell; returns the bytes of a text.
    fn add(&mut self, cell: &Cell<'_>) -> io::Result<usize> {
        let mut bytes = 0;
        let there = match (cell, &mut self.values) {
            (Cell::Empty, _) => false,
            (Cell::Time(value) | Cell::Number(value), Values::Long(values)) => push(values, *value),
            (Cell::Float(value), Values::Float(values)) => push(values, *value),
            (Cell::Flag(value), Values::Flag(values)) => push(values, *value),
            (Cell::Text(value), Values::Text(values)) => {
                bytes = value.len();
                push(values, ByteArray::from(*value))
            }
            (_, _) => return Err(io::Error::other("a value is not of its column's kind")),
        };
        match &mut self.there {
            Some(list) => list.push(i16::from(there)),
            None if !there => return Err(io::Error::other("a value is missing that each row has")),
            None => {}
        }
        Ok(bytes)
    }

    fn write(&mut self, writer: &mut SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        let there = self.there.as_deref();
        match &mut self.values {
            Values::Long(values) => write::<Int64Type>(writer, values, there)?,
            Values::Float(values) => write::<FloatType>(writer, values, there)?,
            Values::Text(values) => write::<ByteArrayType>(writer, values, there)?,
            Values::Flag(values) => write::<BoolType>(writer, values, there)?,
        }
        if let Some(there) = &mut self.there {
            there.clear();
        }
        Ok(())
    }
}

fn push<T>(values: &mut Vec<T>, value: T) -> bool {
    values.push(value);
    true
}

fn write<T: DataType>(
    writer: &mut SerializedColumnWriter<'_>,
    values: &mut Vec<T::T>,
    there: Option<&[i16]>,
) -> Result<(), ParquetError> {
    writer.typed::<T>().write_batch(values, there, None)?;
    values.clear();
    Ok(())
}

fn schema(columns: &[Column]) -> Result<TypePtr, ParquetError> {
    let fields = columns.iter().map(|column| {
        let (physical, logical) = match column.kind {
            Kind::Time => (Physical::INT64, Some(LogicalType::timestamp(true, TimeUnit::MICROS))),
            Kind::Number => (Physical::INT64, None),
            Kind::Float => (Physical::FLOAT, None),
            Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Kind::Flag => (Physical::BOOLEAN, None),
        };
        let repetition = if column.required { Repetition::REQUIRED } else { Repetition::OPTIONAL };
        let field = Type::primitive_type_builder(&column.name, physical);
        field.with_logical_type(logical).with_repetition(repetition).build().map(Arc::new)
    });
    let fields = fields.collect::<Result<Vec<_>, _>>()?;
    Type::group_type_builder("schema").with_fields(fields).build().map(Arc::new)
}

/// Times differ by a step, texts are few; values hardly ever repeat, so that a dictionary of them is only work.
fn properties(columns: &[Column]) -> WriterPropertiesPtr {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_dictionary_enabled(false)
        .set_created_by(format!("millwright {}", env!("CARGO_PKG_VERSION")));
    for column in columns {
        let path = ColumnPath::new(vec![column.name.clone()]);
        properties = match column.kind {
            Kind::Text => properties.set_column_dictionary_enabled(path, true),
            Kind::Time | Kind::Number => properties.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED),
            Kind::Float | Kind::Flag => properties,
        };
    }
    Arc::new(properties.build())
}

/// What the file system said, if it was that.
fn io_error(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(cause) => io::Error::other(cause),
        },
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use ::parquet::file::reader::{FileReader, SerializedFileReader};
    use ::parquet::record::Field;

    use super::*;

    // What was written is read back, of the types that are promised, over the border of a row group: times as UTC microseconds,
    // values to the bit, and nothing where nothing was.
    #[test]
    fn a_table_is_read_back() {
        let columns = [
            Column::required("time", Kind::Time),
            Column::optional("asset", Kind::Text),
            Column::optional("flow.min", Kind::Float),
            Column::optional("number", Kind::Number),
            Column::optional("silenced", Kind::Flag),
        ];
        let rows = GROUP_ROWS_MAX + 10;
        let mut out = Vec::new();
        let mut writer = ParquetWriter::new(&columns, &mut out).unwrap();
        for row in 0..rows {
            let value = if row % 7 == 0 { Cell::Empty } else { Cell::float(row as f32 / 3.0) };
            let number = if row % 2 == 0 { Cell::Empty } else { Cell::Number(row as i64) };
            let time = Cell::Time(1_772_431_200_000_000 + row as i64);
            writer.row(&[time, Cell::Text("pump-1"), value, number, Cell::Flag(row % 3 == 0)]).unwrap();
        }
        writer.finish().unwrap();
        drop(writer);

        let reader = SerializedFileReader::new(bytes::Bytes::from(out)).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 2);
        let schema = reader.metadata().file_metadata().schema_descr();
        let time = schema.column(0);
        assert_eq!(time.logical_type_ref(), Some(&LogicalType::timestamp(true, TimeUnit::MICROS)));
        let mut count = 0;
        for (row, read) in reader.get_row_iter(None).unwrap().enumerate() {
            let read = read.unwrap();
            let fields: Vec<&Field> = read.get_column_iter().map(|(_, field)| field).collect();
            assert_eq!(fields[0], &Field::TimestampMicros(1_772_431_200_000_000 + row as i64));
            let value = if row % 7 == 0 { Field::Null } else { Field::Float(row as f32 / 3.0) };
            let number = if row % 2 == 0 { Field::Null } else { Field::Long(row as i64) };
            let rest = [&Field::Str("pump-1".to_owned()), &value, &number, &Field::Bool(row % 3 == 0)];
            assert_eq!(fields[1..], rest, "row {row}");
            count += 1;
        }
        assert_eq!(count, rows);
    }

    // What the disk says while a file is written is what is told, whatever layer it came through.
    #[test]
    fn a_full_disk_is_told_as_such() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let columns = [Column::required("time", Kind::Time)];
        let mut out = Full;
        let mut writer = ParquetWriter::new(&columns, &mut out).unwrap();
        let failed = (0..GROUP_ROWS_MAX as i64 + 1).find_map(|row| writer.row(&[Cell::Time(row * row)]).err());
        let failed = failed.or_else(|| writer.finish().err()).unwrap();
        assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    }
}
