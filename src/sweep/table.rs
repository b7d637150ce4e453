//! Rows to Parquet and back. Which columns there are depends on the sweep: its axes, and the figures that any
//! of its runs has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, Repetition, Type as Physical};
use parquet::column::reader::ColumnReader;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader as _, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;

use super::error::{SweepError, malformed, unreadable, unwritable};
use super::row::{Parameter, Row};
use crate::results::{ResultsError, SCHEMA_VERSION};

/// Rows held in memory before they become a row group (about 2 MB).
const ROW_GROUP_ROWS: usize = 512;
const VERSION_KEY: &str = "nashflock.schema_version";
/// What the file is of, as JSON.
pub(super) const HEAD_KEY: &str = "nashflock.sweep";

const PARAMETER: &str = "parameter.";
const FIGURE: &str = "figure.";
const MEASURED: &str = "measured.";

/// The columns of a table: those that follow from scenario and seed first, measured ones last.
#[derive(Clone, Debug, Default)]
pub(super) struct Columns {
    /// The keys of the axes.
    keys: Vec<String>,
    kinds: Vec<Option<Kind>>,
    figures: BTreeSet<String>,
    measured: BTreeSet<String>,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Whole,
    Number,
    Truth,
    Text,
}

/// One column and where its cells come from.
struct Column<'a> {
    name: String,
    kind: Kind,
    cell: Box<CellOf<'a>>,
}

type CellOf<'a> = dyn Fn(&Row) -> Option<Parameter> + 'a;

impl Columns {
    pub(super) fn of(keys: Vec<String>) -> Self {
        Self { kinds: vec![None; keys.len()], keys, ..Self::default() }
    }

    /// Makes room for what a row has.
    pub(super) fn take(&mut self, row: &Row) {
        for (kind, parameter) in self.kinds.iter_mut().zip(&row.parameters) {
            let own = Kind::of(parameter);
            *kind = Some(match kind {
                None => own,
                Some(kind) if *kind == own => own,
                Some(Kind::Whole | Kind::Number) if matches!(own, Kind::Whole | Kind::Number) => {
                    Kind::Number
                }
                Some(_) => Kind::Text,
            });
        }
        self.figures.extend(
            row.figures
                .keys()
                .filter(|key| !self.figures.contains(*key))
                .cloned()
                .collect::<Vec<_>>(),
        );
        self.measured.extend(
            row.measured
                .keys()
                .filter(|key| !self.measured.contains(*key))
                .cloned()
                .collect::<Vec<_>>(),
        );
    }

    fn all(&self) -> Vec<Column<'_>> {
        let mut columns: Vec<Column<'_>> = Vec::new();
        let mut add = |name: &str, kind, cell: Box<CellOf<'static>>| {
            columns.push(Column { name: name.to_owned(), kind, cell });
        };
        let text = |text: &Option<String>| text.clone().map(Parameter::Text);
        add("run", Kind::Whole, Box::new(|row| whole(row.run)));
        add("point", Kind::Whole, Box::new(|row| whole(row.point)));
        add("replicate", Kind::Whole, Box::new(|row| whole(row.replicate.into())));
        add("seed", Kind::Whole, Box::new(|row| whole(row.seed)));
        add("id", Kind::Text, Box::new(|row| Some(Parameter::Text(row.id.clone()))));
        add("exit_code", Kind::Whole, Box::new(|row| whole(row.exit_code.into())));
        add("message", Kind::Text, Box::new(move |row| text(&row.message)));
        add("state_hash", Kind::Text, Box::new(move |row| text(&row.state_hash)));
        add("inputs", Kind::Text, Box::new(move |row| text(&row.inputs)));
        for (at, key) in self.keys.iter().enumerate() {
            let kind = self.kinds[at].unwrap_or(Kind::Text);
            let cell = move |row: &Row| row.parameters.get(at).cloned();
            columns.push(Column { name: format!("{PARAMETER}{key}"), kind, cell: Box::new(cell) });
        }
        type Of = fn(&Row) -> &BTreeMap<String, f64>;
        let kinds: [(&str, &BTreeSet<String>, Of); 2] = [
            (FIGURE, &self.figures, |row| &row.figures),
            (MEASURED, &self.measured, |row| &row.measured),
        ];
        for (prefix, keys, of) in kinds {
            for key in keys {
                let cell = move |row: &Row| of(row).get(key).copied().map(Parameter::Number);
                let (name, cell) = (format!("{prefix}{key}"), Box::new(cell));
                columns.push(Column { name, kind: Kind::Number, cell });
            }
        }
        columns
    }
}

fn whole(value: u64) -> Option<Parameter> {
    Some(Parameter::Whole(value.cast_signed()))
}

impl Kind {
    fn of(parameter: &Parameter) -> Self {
        match parameter {
            Parameter::Whole(_) => Self::Whole,
            Parameter::Number(_) => Self::Number,
            Parameter::Truth(_) => Self::Truth,
            Parameter::Text(_) => Self::Text,
        }
    }

    fn column(self, name: &str) -> ParquetResult<Type> {
        let (physical, converted) = match self {
            Self::Whole => (Physical::INT64, ConvertedType::NONE),
            Self::Number => (Physical::DOUBLE, ConvertedType::NONE),
            Self::Truth => (Physical::BOOLEAN, ConvertedType::NONE),
            Self::Text => (Physical::BYTE_ARRAY, ConvertedType::UTF8),
        };
        Type::primitive_type_builder(name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_converted_type(converted)
            .build()
    }
}

/// Writes rows, in the order they come, to a file that takes its name when it is whole.
pub(super) fn write(
    path: &Path,
    head: &str,
    columns: &Columns,
    rows: impl Iterator<Item = Result<Row, SweepError>>,
) -> Result<(), SweepError> {
    let failed = |error| ResultsError::Write { file: path.to_owned(), source: error };
    let columns = columns.all();
    let fields = columns.iter().map(|column| column.kind.column(&column.name).map(Arc::new));
    let fields: Vec<_> = fields.collect::<ParquetResult<_>>().map_err(|e| failed(e.into()))?;
    let schema = Type::group_type_builder("runs").with_fields(fields).build();
    let schema = schema.map_err(|error| failed(error.into()))?;
    let said = |key: &str, value: &str| KeyValue::new(key.to_owned(), value.to_owned());
    let properties = WriterProperties::builder()
        .set_compression(Compression::LZ4_RAW)
        .set_created_by(concat!("nashflock ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(vec![
            said(VERSION_KEY, &SCHEMA_VERSION.to_string()),
            said(HEAD_KEY, head),
        ]))
        .build();
    let partial = path.with_extension("parquet.partial");
    let file = File::create(&partial).map_err(unwritable(&partial))?;
    let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties));
    let mut writer = writer.map_err(|error| failed(error.into()))?;
    let mut group = Vec::with_capacity(ROW_GROUP_ROWS);
    for row in rows {
        group.push(row?);
        if group.len() == ROW_GROUP_ROWS {
            write_group(&mut writer, &columns, &group).map_err(|error| failed(error.into()))?;
            group.clear();
        }
    }
    if !group.is_empty() {
        write_group(&mut writer, &columns, &group).map_err(|error| failed(error.into()))?;
    }
    writer.finish().map_err(|error| failed(error.into()))?;
    writer.inner().sync_all().map_err(unwritable(&partial))?;
    fs::rename(&partial, path).map_err(unwritable(path))
}

fn write_group(
    writer: &mut SerializedFileWriter<File>,
    columns: &[Column<'_>],
    rows: &[Row],
) -> ParquetResult<()> {
    let mut group = writer.next_row_group()?;
    for column in columns {
        write_column(&mut group, column, rows)?;
    }
    group.close().map(|_| ())
}

fn write_column(
    group: &mut SerializedRowGroupWriter<'_, File>,
    column: &Column<'_>,
    rows: &[Row],
) -> ParquetResult<()> {
    let cells: Vec<Option<Parameter>> = rows.iter().map(|row| (column.cell)(row)).collect();
    let levels: Vec<i16> = cells.iter().map(|cell| i16::from(cell.is_some())).collect();
    let levels = Some(levels.as_slice());
    let cells = cells.into_iter().flatten();
    let mut writer = group.next_column()?.expect("the schema has a column for each");
    match writer.untyped() {
        ColumnWriter::Int64ColumnWriter(writer) => {
            let whole = |cell| if let Parameter::Whole(whole) = cell { whole } else { 0 };
            writer.write_batch(&cells.map(whole).collect::<Vec<_>>(), levels, None)?;
        }
        ColumnWriter::DoubleColumnWriter(writer) => {
            let number = |cell| match cell {
                Parameter::Number(number) => number,
                Parameter::Whole(whole) => whole as f64,
                _ => f64::NAN,
            };
            writer.write_batch(&cells.map(number).collect::<Vec<_>>(), levels, None)?;
        }
        ColumnWriter::BoolColumnWriter(writer) => {
            let truth = |cell| cell == Parameter::Truth(true);
            writer.write_batch(&cells.map(truth).collect::<Vec<_>>(), levels, None)?;
        }
        ColumnWriter::ByteArrayColumnWriter(writer) => {
            let text = |cell: Parameter| ByteArray::from(cell.to_string().as_str());
            writer.write_batch(&cells.map(text).collect::<Vec<_>>(), levels, None)?;
        }
        _ => unreachable!("columns are of these four kinds"),
    }
    writer.close()
}

/// Reads a table row by row; one row group is in memory at a time.
pub(super) struct TableRows {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    groups: std::ops::Range<usize>,
    rows: std::vec::IntoIter<Row>,
}

impl TableRows {
    /// Opens a table; gives what it is of, too.
    pub(super) fn open(path: &Path) -> Result<(Self, String), SweepError> {
        let file = File::open(path).map_err(unreadable(path))?;
        let reader = SerializedFileReader::new(file).map_err(|error| malformed(path, error))?;
        let said = |key: &str| {
            let of = reader.metadata().file_metadata().key_value_metadata();
            of.into_iter().flatten().find(|of| of.key == key).and_then(|of| of.value.clone())
        };
        let version = said(VERSION_KEY).and_then(|text| text.parse::<u32>().ok());
        let Some(found) = version else { return Err(malformed(path, "it states no version")) };
        if found > SCHEMA_VERSION {
            let (file, known) = (path.to_owned(), SCHEMA_VERSION);
            return Err(ResultsError::TooNew { file, found, known }.into());
        }
        let head = said(HEAD_KEY).ok_or_else(|| malformed(path, "it is no table of a sweep"))?;
        let groups = 0..reader.num_row_groups();
        Ok((Self { path: path.to_owned(), reader, groups, rows: Vec::new().into_iter() }, head))
    }

    fn read(&self, group: usize) -> Result<Vec<Row>, SweepError> {
        let group = self.reader.get_row_group(group);
        let rows = group.and_then(|group| read_group(group.as_ref()));
        rows.map_err(|error| malformed(&self.path, error))
    }
}

impl Iterator for TableRows {
    type Item = Result<Row, SweepError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.next() {
                return Some(Ok(row));
            }
            let group = self.groups.next()?;
            match self.read(group) {
                Ok(rows) => self.rows = rows.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn read_group(group: &dyn RowGroupReader) -> ParquetResult<Vec<Row>> {
    let count = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
    let empty = Row {
        run: 0,
        point: 0,
        replicate: 0,
        seed: 0,
        id: String::new(),
        parameters: Vec::new(),
        exit_code: 1,
        message: None,
        state_hash: None,
        inputs: None,
        figures: BTreeMap::new(),
        measured: BTreeMap::new(),
    };
    let mut rows = vec![empty; count];
    for at in 0..group.num_columns() {
        let name = group.metadata().column(at).column_descr().name().to_owned();
        let cells = read_column(group.get_column_reader(at)?, count)?;
        for (row, cell) in rows.iter_mut().zip(cells) {
            if let Some(cell) = cell {
                put(row, &name, cell);
            }
        }
    }
    Ok(rows)
}

/// Columns that a later version may add are passed over.
fn put(row: &mut Row, name: &str, cell: Parameter) {
    let whole = if let Parameter::Whole(whole) = cell { whole.cast_unsigned() } else { 0 };
    if name.starts_with(PARAMETER) {
        row.parameters.push(cell);
        return;
    }
    if let Parameter::Number(number) = cell {
        if let Some(key) = name.strip_prefix(FIGURE) {
            row.figures.insert(key.to_owned(), number);
        } else if let Some(key) = name.strip_prefix(MEASURED) {
            row.measured.insert(key.to_owned(), number);
        }
        return;
    }
    match name {
        "run" => row.run = whole,
        "point" => row.point = whole,
        "replicate" => row.replicate = u32::try_from(whole).unwrap_or(u32::MAX),
        "seed" => row.seed = whole,
        "id" => row.id = cell.to_string(),
        "exit_code" => row.exit_code = u8::try_from(whole).unwrap_or(u8::MAX),
        "message" => row.message = Some(cell.to_string()),
        "state_hash" => row.state_hash = Some(cell.to_string()),
        "inputs" => row.inputs = Some(cell.to_string()),
        _ => {}
    }
}

fn read_column(reader: ColumnReader, count: usize) -> ParquetResult<Vec<Option<Parameter>>> {
    /// Values and levels of a typed reader.
    macro_rules! cells {
        ($reader:expr, $cell:expr) => {{
            let (mut reader, mut levels, mut values) = ($reader, Vec::new(), Vec::new());
            while levels.len() < count {
                let wanted = count - levels.len();
                let read = reader.read_records(wanted, Some(&mut levels), None, &mut values)?;
                if read.0 == 0 {
                    break;
                }
            }
            let mut values = values.into_iter().map($cell);
            levels.into_iter().map(|level| if level == 0 { None } else { values.next() }).collect()
        }};
    }
    Ok(match reader {
        ColumnReader::Int64ColumnReader(reader) => cells!(reader, Parameter::Whole),
        ColumnReader::DoubleColumnReader(reader) => cells!(reader, Parameter::Number),
        ColumnReader::BoolColumnReader(reader) => cells!(reader, Parameter::Truth),
        ColumnReader::ByteArrayColumnReader(reader) => cells!(reader, |bytes: ByteArray| {
            Parameter::Text(String::from_utf8_lossy(bytes.data()).into_owned())
        }),
        _ => Vec::new(),
    })
}
