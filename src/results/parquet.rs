//! Rows to Parquet and back, without arrow: one typed column writer a field.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::reader::get_typed_column_reader;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::error::ResultsError;
use super::{SCHEMA_VERSION, run_dir};

/// Rows held in memory before they become a row group (about 1 MB).
const ROW_GROUP_ROWS: usize = 4096;
/// Key of the schema version in the file's metadata.
const VERSION_KEY: &str = "nashflock.schema_version";

/// What a column holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name, with the unit.
    pub name: &'static str,
    /// Its type in Parquet's schema language.
    pub kind: String,
    /// What it holds, in a sentence.
    pub says: String,
}

/// A struct whose fields are the columns of one table.
pub trait Row: Sized {
    /// The table: its file is `NAME.parquet`.
    const NAME: &'static str;

    /// The columns in Parquet's schema language.
    fn schema() -> String;

    /// The same, with what each holds.
    fn columns() -> Vec<Column>;

    /// Writes every column of one row group.
    ///
    /// # Errors
    /// What the encoder or the file reports.
    fn write_group(
        rows: &[Self],
        group: &mut SerializedRowGroupWriter<'_, File>,
    ) -> ParquetResult<()>;

    /// Reads one row group. Columns are found by name; further ones are ignored, and an optional one
    /// that is missing reads as absent.
    ///
    /// # Errors
    /// A required column that is missing, a column of another type, and damaged pages.
    fn read_group(group: &dyn RowGroupReader) -> ParquetResult<Vec<Self>>;
}

/// Appends rows to one table of a run directory. Until [`TableWriter::finish`] the file is named
/// `….partial`; at most one row group is held in memory.
#[derive(Debug)]
pub struct TableWriter<R> {
    writer: SerializedFileWriter<File>,
    rows: Vec<R>,
    partial: PathBuf,
    target: PathBuf,
    is_synced: bool,
}

impl<R: Row> TableWriter<R> {
    /// Starts `DIR/NAME.parquet`; `is_synced` says whether it is on the disk when it is finished.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(super) fn create(dir: &Path, is_synced: bool) -> Result<Self, ResultsError> {
        let target = dir.join(format!("{}.parquet", R::NAME));
        let partial = run_dir::partial_name(&target);
        let failed = |source| ResultsError::Write { file: partial.clone(), source };
        let schema =
            parse_message_type(&R::schema()).expect("the row macro writes the schema language");
        let properties = WriterProperties::builder()
            .set_compression(Compression::LZ4_RAW)
            .set_created_by(concat!("nashflock ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(vec![KeyValue::new(
                VERSION_KEY.to_owned(),
                SCHEMA_VERSION.to_string(),
            )]))
            .build();
        let file = File::create(&partial).map_err(|error| failed(error.into()))?;
        let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))
            .map_err(|error| failed(error.into()))?;
        Ok(Self { writer, rows: Vec::with_capacity(ROW_GROUP_ROWS), partial, target, is_synced })
    }

    /// Appends a row; every 4096 rows a row group is written.
    ///
    /// # Errors
    /// The row group cannot be written. The writer is of no use afterwards.
    pub fn push(&mut self, row: R) -> Result<(), ResultsError> {
        self.rows.push(row);
        if self.rows.len() < ROW_GROUP_ROWS { Ok(()) } else { self.flush() }
    }

    /// Writes what is left and the footer, and gives the file its name.
    ///
    /// # Errors
    /// Any of that fails; the row groups written so far stay in the `.partial` file.
    pub fn finish(mut self) -> Result<(), ResultsError> {
        self.flush()?;
        let failed = |source| ResultsError::Write { file: self.target.clone(), source };
        self.writer.finish().map_err(|error| failed(error.into()))?;
        if self.is_synced {
            self.writer.inner().sync_all().map_err(|error| failed(error.into()))?;
        }
        std::fs::rename(&self.partial, &self.target).map_err(|error| failed(error.into()))
    }

    fn flush(&mut self) -> Result<(), ResultsError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut write = || {
            let mut group = self.writer.next_row_group()?;
            R::write_group(&self.rows, &mut group)?;
            group.close()
        };
        write().map_err(|error| ResultsError::Write {
            file: self.partial.clone(),
            source: error.into(),
        })?;
        self.rows.clear();
        Ok(())
    }
}

/// Reads `DIR/NAME.parquet`, all rows in the order they were written.
///
/// # Errors
/// The file is missing, of a newer version, lacks a column, or is damaged.
pub fn read_table<R: Row>(dir: &Path) -> Result<Vec<R>, ResultsError> {
    let path = dir.join(format!("{}.parquet", R::NAME));
    let file =
        File::open(&path).map_err(|source| ResultsError::Read { file: path.clone(), source })?;
    let malformed = |error: ParquetError| ResultsError::Malformed {
        file: path.clone(),
        reason: error.to_string(),
    };
    let reader = SerializedFileReader::new(file).map_err(malformed)?;
    let metadata = reader.metadata().file_metadata();
    let version = metadata.key_value_metadata().into_iter().flatten().find_map(|entry| {
        (entry.key == VERSION_KEY).then(|| entry.value.as_ref()?.parse::<u32>().ok()).flatten()
    });
    match version {
        Some(found) if found > SCHEMA_VERSION => {
            return Err(ResultsError::TooNew { file: path, found, known: SCHEMA_VERSION });
        }
        None => return Err(malformed(ParquetError::General(format!("no {VERSION_KEY}")))),
        Some(_) => {}
    }
    let mut rows = Vec::new();
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(malformed)?;
        rows.extend(R::read_group(group.as_ref()).map_err(malformed)?);
    }
    Ok(rows)
}

/// A field type and how a column stores it.
pub(super) trait Cell: Sized {
    type Physical: DataType;
    /// Repetition and type in the schema language.
    const TYPE: &'static str;
    /// Annotation after the column's name.
    const LOGICAL: &'static str = "";
    const OPTIONAL: bool = false;
    fn store(&self) -> Option<<Self::Physical as DataType>::T>;
    fn load(value: <Self::Physical as DataType>::T) -> Option<Self>;
    fn absent() -> Option<Self> {
        None
    }
}

impl Cell for u64 {
    type Physical = Int64Type;
    const TYPE: &'static str = "required int64";
    const LOGICAL: &'static str = " (INTEGER(64,false))";
    fn store(&self) -> Option<i64> {
        Some(self.cast_signed())
    }
    fn load(value: i64) -> Option<Self> {
        Some(value.cast_unsigned())
    }
}

impl Cell for u32 {
    type Physical = Int32Type;
    const TYPE: &'static str = "required int32";
    const LOGICAL: &'static str = " (INTEGER(32,false))";
    fn store(&self) -> Option<i32> {
        Some(self.cast_signed())
    }
    fn load(value: i32) -> Option<Self> {
        Some(value.cast_unsigned())
    }
}

impl Cell for f64 {
    type Physical = DoubleType;
    const TYPE: &'static str = "required double";
    fn store(&self) -> Option<f64> {
        Some(*self)
    }
    fn load(value: f64) -> Option<Self> {
        Some(value)
    }
}

impl Cell for String {
    type Physical = ByteArrayType;
    const TYPE: &'static str = "required binary";
    const LOGICAL: &'static str = " (STRING)";
    fn store(&self) -> Option<ByteArray> {
        Some(self.as_str().into())
    }
    fn load(value: ByteArray) -> Option<Self> {
        value.as_utf8().ok().map(str::to_owned)
    }
}

macro_rules! optional_cell {
    ($inner:ty, $kind:literal) => {
        impl Cell for Option<$inner> {
            type Physical = <$inner as Cell>::Physical;
            const TYPE: &'static str = $kind;
            const LOGICAL: &'static str = <$inner as Cell>::LOGICAL;
            const OPTIONAL: bool = true;
            fn store(&self) -> Option<<Self::Physical as DataType>::T> {
                self.as_ref().and_then(Cell::store)
            }
            fn load(value: <Self::Physical as DataType>::T) -> Option<Self> {
                <$inner as Cell>::load(value).map(Some)
            }
            fn absent() -> Option<Self> {
                Some(None)
            }
        }
    };
}
optional_cell!(f64, "optional double");
optional_cell!(u64, "optional int64");

/// Declares a row struct and its table.
macro_rules! row {
    ($(#[$doc:meta])* $name:ident in $table:literal {
        $($(#[doc = $field_doc:literal])* $field:ident: $type:ty,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        pub struct $name {
            $($(#[doc = $field_doc])* pub $field: $type,)*
        }

        impl $crate::results::Row for $name {
            const NAME: &'static str = $table;

            fn schema() -> String {
                use $crate::results::parquet::Cell;
                let mut schema = concat!("message ", $table, " {").to_owned();
                $(
                    schema.push_str(<$type as Cell>::TYPE);
                    schema.push_str(concat!(" ", stringify!($field)));
                    schema.push_str(<$type as Cell>::LOGICAL);
                    schema.push(';');
                )*
                schema + "}"
            }

            fn columns() -> Vec<$crate::results::Column> {
                use $crate::results::parquet::Cell;
                vec![$($crate::results::Column {
                    name: stringify!($field),
                    kind: format!("{}{}", <$type as Cell>::TYPE, <$type as Cell>::LOGICAL),
                    says: [$($field_doc),*].concat().trim().to_owned(),
                }),*]
            }

            fn write_group(
                rows: &[Self],
                group: &mut ::parquet::file::writer::SerializedRowGroupWriter<'_, std::fs::File>,
            ) -> ::parquet::errors::Result<()> {
                $($crate::results::parquet::write_column(rows, group, |row| &row.$field)?;)*
                Ok(())
            }

            fn read_group(
                group: &dyn ::parquet::file::reader::RowGroupReader,
            ) -> ::parquet::errors::Result<Vec<Self>> {
                let columns = $crate::results::parquet::Columns::of(group);
                $(let mut $field = columns.read::<$type>(stringify!($field))?.into_iter();)*
                // Every column has as many values as the group has rows.
                let rows = columns.rows();
                Ok((0..rows)
                    .map_while(|_| Some(Self { $($field: $field.next()?,)* }))
                    .collect())
            }
        }
    };
}
pub(super) use row;

/// Writes one column of one row group.
pub(super) fn write_column<R, C: Cell>(
    rows: &[R],
    group: &mut SerializedRowGroupWriter<'_, File>,
    field: impl Fn(&R) -> &C,
) -> ParquetResult<()> {
    let cells: Vec<_> = rows.iter().map(|row| field(row).store()).collect();
    let present: Vec<i16> = cells.iter().map(|cell| i16::from(cell.is_some())).collect();
    let values: Vec<_> = cells.into_iter().flatten().collect();
    let mut column = group.next_column()?.expect("the schema has a column for every field");
    let levels = C::OPTIONAL.then_some(present.as_slice());
    column.typed::<C::Physical>().write_batch(&values, levels, None)?;
    column.close()
}

/// The columns of one row group, by name.
pub(super) struct Columns<'a> {
    group: &'a dyn RowGroupReader,
}

impl<'a> Columns<'a> {
    pub(super) fn of(group: &'a dyn RowGroupReader) -> Self {
        Self { group }
    }

    pub(super) fn rows(&self) -> usize {
        usize::try_from(self.group.metadata().num_rows()).unwrap_or(0)
    }

    /// One value a row.
    pub(super) fn read<C: Cell>(&self, name: &str) -> ParquetResult<Vec<C>> {
        let general = |reason: &str| ParquetError::General(format!("column {name} {reason}"));
        let columns = self.group.metadata().columns();
        let Some(at) = columns.iter().position(|column| column.column_path().string() == name)
        else {
            return (0..self.rows())
                .map(|_| C::absent().ok_or_else(|| general("is missing")))
                .collect();
        };
        let described = columns[at].column_descr();
        if described.physical_type() != C::Physical::get_physical_type()
            || described.max_rep_level() != 0
            || described.max_def_level() > 1
        {
            return Err(general("has another type"));
        }
        let nullable = described.max_def_level() == 1;
        let mut reader = get_typed_column_reader::<C::Physical>(self.group.get_column_reader(at)?);
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        loop {
            let defined = nullable.then_some(&mut levels);
            let (records, _, _) =
                reader.read_records(ROW_GROUP_ROWS, defined, None, &mut values)?;
            if records == 0 {
                break;
            }
        }
        if !nullable {
            levels = vec![1; values.len()];
        }
        if levels.len() != self.rows() {
            return Err(general("has another number of values than the row group has rows"));
        }
        let mut values = values.into_iter();
        levels
            .into_iter()
            .map(|level| match level {
                0 => C::absent(),
                _ => values.next().and_then(C::load),
            })
            .map(|cell| cell.ok_or_else(|| general("holds a value that cannot be read")))
            .collect()
    }
}
